"""The part of the package that calls Ray, vLLM, DeepSpeed and OpenRLHF."""
