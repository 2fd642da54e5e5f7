"""Environment variables that processes on other machines get from the one that starts a run or submits a job.

Ray gives its workers the environment of their node, so what a user exports before ``train`` or ``submit`` would not
reach them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIXES = ("CUDA_", "FLASHINFER_", "GLOO_", "HF_", "NCCL_", "PYTORCH_", "TORCH", "TRANSFORMERS_", "TRITON_", "VLLM_")
"""Beginnings of the names that are passed on: settings of the libraries that engines and trainer ranks use."""

OF_THE_MACHINE = frozenset({"CUDA_VISIBLE_DEVICES", "VLLM_HOST_IP"})
"""Names that mean something else on each machine; Ray or vLLM sets them there."""

SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)S?$")
"""Endings of names whose values are not passed on, because Ray shows a job's environment to everybody who may see the
job. A gated model's token must be on the machines that download it."""


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables of an environment that are passed on."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIXES) and name not in OF_THE_MACHINE and not SECRET.search(name)
    }
