"""Workloads: what the arms of a comparison, or the parts of a check, are given to do."""
