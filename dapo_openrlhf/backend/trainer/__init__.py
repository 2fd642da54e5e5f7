"""One rank of the trainer: models, packed forward passes, losses, updates, and the export of weights."""
