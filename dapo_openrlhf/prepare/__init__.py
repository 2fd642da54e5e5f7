"""Converts public data sets to the project's prompt format."""
