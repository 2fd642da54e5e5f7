"""Reports the installed packages and the GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.gpu_check.check import Check

PACKAGES = ("torch", "vllm", "flash-attn", "deepspeed", "transformers", "openrlhf", "ray", "flashinfer-python")
COPIES = 20


def versions(folder: Path) -> dict[str, Any]:
    """Find the installed packages, the GPU, and how long the GPU takes for a copy of the model's size."""
    import torch

    device = torch.cuda.get_device_properties(0)
    weights = torch.empty(988_000_000, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(weights)
    seconds = []
    for _ in range(COPIES):
        torch.cuda.synchronize()
        started = time.perf_counter()
        copy.copy_(weights)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    compiled = importlib.util.find_spec("flash_attn_2_cuda") is not None
    return {
        "gpu": device.name,
        "memory_gb": device.total_memory / 1e9,
        "cuda": torch.version.cuda,
        "packages": installed,
        "flash_attention_compiled": compiled,
        "copy_seconds": statistics.median(seconds),
    }


def judge_versions(found: Mapping[str, Any]) -> list[Check]:
    """Every package must be installed; a compiled flash-attn may be missing, which only costs speed."""
    missing = [name for name, version in found["packages"].items() if version is None and name != "flashinfer-python"]
    listed = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    return [
        Check(name="GPU", measured=f"{found['gpu']}, {found['memory_gb']:.0f} GB, CUDA {found['cuda']}"),
        Check(name="packages", measured=listed, wanted=f"no {missing[0]}" if missing else "all", passed=not missing),
        Check(
            name="flash-attn",
            measured="compiled" if found["flash_attention_compiled"] else "not compiled: sdpa, which is slower",
        ),
        Check(name="copy of 988 MB on the device", measured=f"{found['copy_seconds'] * 1e3:.2f} ms"),
    ]
