"""The trainer's end of the weight sync, with one file per transport (runs in trainer ranks)."""
