"""Reports the installed packages and the GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.gpu_check.check import Check, Found

PACKAGES = ("torch", "vllm", "flash-attn", "deepspeed", "transformers", "openrlhf", "ray", "flashinfer-python")
TIMES = 20
COPY_BYTES = 988_000_000
SIDE = 8192
"""Rows and columns of the matrices that are multiplied."""


def versions(gpus: int) -> Callable[[Path], dict[str, Any]]:
    """The function that finds the installed packages, the GPU, and what it does alone; the check uses ``gpus`` GPUs."""
    return lambda folder: {**_packages(), **_card(), "gpus": gpus}


def _card() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_properties(0)
    weights = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(weights)
    left = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")
    product = torch.empty_like(left)
    return {
        "gpu": device.name,
        "memory_gb": device.total_memory / 1e9,
        "cuda": torch.version.cuda,
        "copy_bytes": COPY_BYTES,
        "copy_seconds": _seconds(lambda: copy.copy_(weights)),
        "flops": 2 * SIDE**3 / _seconds(lambda: torch.mm(left, left, out=product)),
    }


def _seconds(work: Callable[[], object]) -> float:
    """The median duration of some work on the GPU."""
    import torch

    seconds = []
    for _ in range(TIMES):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _packages() -> dict[str, Any]:
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    compiled = importlib.util.find_spec("flash_attn_2_cuda") is not None
    return {"packages": installed, "flash_attention_compiled": compiled}


def assess_versions(figures: Found) -> list[Check]:
    """Every package must be installed; a compiled flash-attn may be missing, which only costs speed."""
    found = figures["versions"]
    missing = [name for name, version in found["packages"].items() if version is None and name != "flashinfer-python"]
    listed = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    return [
        Check(
            name="GPU", measured=f"{found['gpus']} x {found['gpu']}, {found['memory_gb']:.0f} GB, CUDA {found['cuda']}"
        ),
        Check(
            name="packages",
            measured=listed,
            expected=f"also {', '.join(missing)}" if missing else "all",
            passed=not missing,
        ),
        Check(
            name="flash-attn",
            measured="compiled" if found["flash_attention_compiled"] else "not compiled: sdpa, which is slower",
        ),
        Check(name="copy of 988 MB on the device", measured=f"{found['copy_seconds'] * 1e3:.2f} ms"),
        Check(name="matrix product in bf16", measured=f"{found['flops'] / 1e12:.0f} TFLOP/s"),
    ]
