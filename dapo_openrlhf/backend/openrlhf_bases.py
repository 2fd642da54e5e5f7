"""OpenRLHF's actors as plain base classes.

OpenRLHF decorates its actors with ``@ray.remote`` where it defines them, and Ray refuses to subclass decorated classes;
the plain class is ``X.__ray_metadata__.modified_class``. Importing them takes 6 to 8 seconds and half a gigabyte, which
only the process that runs an actor should pay. Ray pickles our subclasses by reference, so the controller, which needs
only the method names, gets ``object`` as their base.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

FLASH_ATTENTION = "flash_attn_2_cuda"
"""Name of flash-attn's compiled module."""


def rollout_actor() -> Any:
    """``openrlhf.trainer.ray.vllm_engine.RolloutRayActor`` without its decorator."""
    return _plain("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor")


def policy_actor() -> Any:
    """``openrlhf.trainer.ray.ppo_actor.PolicyModelActor`` without its decorator."""
    return _plain("openrlhf.trainer.ray.ppo_actor", "PolicyModelActor")


def _plain(module: str, name: str) -> Any:
    if os.environ.get("DAPO_OPENRLHF_ACTOR") != "1":
        return object
    import_openrlhf_lightly()
    return getattr(importlib.import_module(module), name).__ray_metadata__.modified_class


def import_openrlhf_lightly() -> None:
    """Make single modules of ``openrlhf.trainer.ray`` importable without the rest.

    The package's ``__init__`` imports vLLM, which trainer ranks do not need. flash-attn's interface, which OpenRLHF
    imports for its padding helpers, requires a compiled module that machines without CUDA do not have.
    """
    if FLASH_ATTENTION not in sys.modules and importlib.util.find_spec(FLASH_ATTENTION) is None:
        sys.modules[FLASH_ATTENTION] = types.ModuleType(FLASH_ATTENTION)
    package = "openrlhf.trainer.ray"
    if package not in sys.modules:
        spec = importlib.util.find_spec("openrlhf.trainer")
        if spec is None or spec.origin is None:
            raise ImportError("openrlhf is not installed; run `make setup`")
        shell = types.ModuleType(package)
        shell.__path__ = [str(Path(spec.origin).parent / "ray")]
        sys.modules[package] = shell


def flash_attention_installed() -> bool:
    """Whether flash-attn's compiled module is installed; our stand-in for it does not count."""
    module = sys.modules.get(FLASH_ATTENTION)
    return importlib.util.find_spec(FLASH_ATTENTION) is not None if module is None else module.__spec__ is not None
