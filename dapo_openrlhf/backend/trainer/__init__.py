"""One rank of the trainer: models, packed forward passes, losses, updates, weights out."""
