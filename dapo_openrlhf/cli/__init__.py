"""The commands (layer 4)."""
