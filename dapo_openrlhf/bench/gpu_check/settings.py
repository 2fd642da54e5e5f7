"""Settings of the runs of the check: on one GPU that engine and trainer share, or on one for each."""

from __future__ import annotations

from typing import Any

from dapo_openrlhf.bench.workload.workload import Workload

GROUPS, SAMPLES = 32, 8
PACK_TOKENS = 16_384


MEMORY_UTILIZATION = {1: 0.3, 2: 0.8}
"""The engine's share of its GPU's memory, by the number of GPUs: one is shared with the trainer."""


def settings_at(
    max_staleness: int, work: Workload, *, gpus: int, steps: int, learning_rate: float = 1e-6
) -> dict[str, Any]:
    """The settings of a run at K = ``max_staleness``: 131,072 response tokens per step, in two updates.

    On one of ``gpus`` weights travel through memory that both map, on two by NCCL.
    """
    return {
        "device": "cuda",
        "run": {"name": f"k{max_staleness}", "dir": str(work.folder / "runs")},
        "actor": {"model_name_or_path": str(work.model), "adam": {"lr": learning_rate}, "lr_warmup_steps": 0},
        "ds": {"zero_stage": 2, "param_dtype": "bf16", "attn_implementation": "flash_attention_2"},
        "vllm": {"gpu_memory_utilization": MEMORY_UTILIZATION[gpus]},
        "rollout": {"batch_size": GROUPS, "n_samples_per_prompt": SAMPLES, "max_new_tokens": work.max_new_tokens},
        "train": {
            "colocate_all": gpus == 1,
            "batch_size": GROUPS * SAMPLES // 2,
            "max_steps": steps,
            "max_tokens_per_gpu": PACK_TOKENS,
        },
        "async": {"max_staleness": max_staleness, "start_timeout": 300.0, "publish_timeout": 60.0},
        "algo": {"dynamic_filtering_enable": False},
        "reward": {"remote_url": str(work.reward), "overlong_filtering_enable": False, "num_workers": 2},
        "data": {"prompt_dataset": str(work.prompts), "max_len": work.max_len},
    }
