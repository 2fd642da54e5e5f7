"""Environments: what answers the policy's actions in a rollout of several turns."""
