"""GPUs by name, with the figures of their makers' public data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. Rates are peaks: dense matrix products in bf16, without sparsity."""

    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second between memory and chip."""
    flops: float
    """Floating point operations per second."""
    link: float
    """Bytes per second to the other GPUs of a machine, in one direction."""
    source: str


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(
        memory=80e9, bandwidth=2.039e12, flops=312e12, link=300e9,
        source="NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM",
    ),
    "h100": Gpu(
        memory=80e9, bandwidth=3.35e12, flops=989e12, link=450e9,
        source="NVIDIA H100 Tensor Core GPU data sheet, SXM; half of the FLOP/s stated with sparsity",
    ),
    "h200": Gpu(
        memory=141e9, bandwidth=4.8e12, flops=989e12, link=450e9,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM; half of the FLOP/s stated with sparsity",
    ),
    "b200": Gpu(
        memory=180e9, bandwidth=7.7e12, flops=2250e12, link=900e9,
        source="NVIDIA DGX B200 data sheet, an eighth of the system; half of the FLOP/s stated with sparsity",
    ),
    "l40s": Gpu(
        memory=48e9, bandwidth=864e9, flops=362e12, link=32e9,
        source="NVIDIA L40S data sheet; PCIe 4.0 x16",
    ),
    "mi300x": Gpu(
        memory=192e9, bandwidth=5.3e12, flops=1307e12, link=448e9,
        source="AMD Instinct MI300X data sheet; seven Infinity Fabric links",
    ),
}  # fmt: skip
"""The GPUs that ``plan --gpu`` knows."""
