"""A run of tiny everything on the real stack."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import make_tiny_model

from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config


def make_config(folder: Path, **overrides: object) -> Config:
    """A run of tiny everything whose answers are scored by chance, so that groups are kept."""
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"input": f"{index}+1=", "label": "7"}) + "\n" for index in range(50))
    )
    (folder / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n"
        "    right = float(sum(map(ord, queries[0])) % 2)\n"
        "    return {'rewards': right, 'scores': right}\n"
    )
    settings = {
        "device": "cpu",
        "run.dir": str(folder / "runs"),
        "actor.model_name_or_path": str(make_tiny_model(folder / "model", tied=True)),
        "ds.param_dtype": "fp32",
        "ds.attn_implementation": "sdpa",
        "rollout.batch_size": 4,
        "rollout.n_samples_per_prompt": 4,
        "rollout.max_new_tokens": 24,
        "data.max_len": 64,
        "data.prompt_dataset": str(folder / "prompts.jsonl"),
        "reward.remote_url": str(folder / "reward.py"),
        "reward.overlong_filtering_enable": False,
        "train.batch_size": 16,
        "train.max_steps": 4,
        "actor.lr_warmup_steps": 0,
        **overrides,
    }
    nested: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        *sections, key = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})  # type: ignore[assignment]
        inner[key] = value  # type: ignore[assignment]
    return build_config(nested, source="test")
