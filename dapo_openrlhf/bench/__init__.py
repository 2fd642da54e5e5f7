"""Benchmark of this project's pipeline against OpenRLHF's own trainers on equal devices."""
