"""Rewards in processes that can be killed; runs without Ray."""
