"""The engines' ends of the weight sync, a file per transport (runs in vLLM's workers)."""
