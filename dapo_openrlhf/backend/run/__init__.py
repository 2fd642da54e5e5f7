"""A run on the real stack: checks the inputs, places and starts the actors, and connects everything."""
