"""The weight sync: how weights travel from the trainer to the engines."""
