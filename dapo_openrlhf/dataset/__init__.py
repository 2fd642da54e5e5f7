"""Turns a file's rows into prompts as the model sees them: reads, renders, tokenizes, checks and caches them."""
