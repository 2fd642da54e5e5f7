"""Workloads: the work that the arms of a comparison, or the parts of a check, are given."""
