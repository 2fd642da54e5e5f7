"""Asynchronous DAPO (arXiv 2503.14476) on OpenRLHF, Ray, vLLM and DeepSpeed."""

__version__ = "0.1.0"
