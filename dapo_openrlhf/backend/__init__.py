"""The edge: the only importers of Ray, vLLM, DeepSpeed and OpenRLHF (layer 3)."""
