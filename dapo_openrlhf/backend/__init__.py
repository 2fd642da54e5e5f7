"""The edge, where Ray, vLLM, DeepSpeed and OpenRLHF are reached."""
