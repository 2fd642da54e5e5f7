"""A run on the real stack: inputs checked, actors placed and started, everything connected."""
