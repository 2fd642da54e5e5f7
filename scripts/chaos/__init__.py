"""Faults put into runs on the real stack, and what became of them: ``make chaos``."""
