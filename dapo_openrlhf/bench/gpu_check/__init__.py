"""Checks and measures an installation on one GPU, part by part."""
