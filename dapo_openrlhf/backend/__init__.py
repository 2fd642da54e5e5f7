"""The edge: the only importers of Ray, vLLM, DeepSpeed and OpenRLHF."""
