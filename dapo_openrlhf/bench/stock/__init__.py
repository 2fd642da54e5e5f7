"""Stock OpenRLHF 0.11.2 as an arm, on a CPU and with unmodified files."""
