"""The trainer's ends of the weight sync, a file per transport (runs in trainer ranks)."""
