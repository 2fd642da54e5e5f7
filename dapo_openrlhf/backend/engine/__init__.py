"""The rollout worker: an actor around vLLM's engine core."""
