"""Warnings about settings that are valid but probably not intended (standard library)."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.algorithm.choices import CORRECTIONS
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.typed import typed

LEAST_FOR_ADAPTERS = 1e-5
"""Learning rate below which adapters hardly learn; whole models take 1e-6."""


def cautions(config: Config, *, prompts: int) -> Iterator[str]:
    """Yield the warnings to print when training starts; ``prompts``: size of the prompt set, at least 1."""
    actor, steps, rollout = config.actor, config.train.max_steps, config.rollout
    if actor.lr_warmup_steps >= steps:
        yield (
            f"actor.lr_warmup_steps: {actor.lr_warmup_steps} steps of warm-up in a run of train.max_steps {steps}: the "
            f"learning rate only grows, to {steps / actor.lr_warmup_steps:.0%} of actor.adam.lr {actor.adam.lr:g}; use "
            f"fewer than {steps}"
        )
    if config.ds.lora.rank and actor.adam.lr < LEAST_FOR_ADAPTERS:
        yield (
            f"actor.adam.lr: {actor.adam.lr:g} is a rate for whole models; adapters (ds.lora.rank {config.ds.lora.rank}) take "
            f"some ten times as much, and learn next to nothing below {LEAST_FOR_ADAPTERS:g}; see docs/lora.md"
        )
    if config.eval.steps > 0 and config.eval.dataset is None:
        yield f"eval.steps: {config.eval.steps} measures nothing without eval.dataset"
    elif config.eval.steps >= steps:
        yield (
            f"eval.steps: {config.eval.steps} of train.max_steps {steps}: there is no evaluation between the first and "
            "the last one"
        )
    if config.ckpt.save_steps >= steps:
        yield (
            f"ckpt.save_steps: {config.ckpt.save_steps} of train.max_steps {steps}: the first checkpoint to resume from "
            "is the one at the end"
        )
    if (named := config.algo.advantage.is_correction) is not None:
        own = config.algo.advantage.model_dump()
        for key, value in CORRECTIONS[named].items():
            if own[key] != value:
                yield (
                    f"algo.advantage.{key}: {typed(own[key])} in place of the {typed(value)} that is_correction {named} "
                    "stands for, because the run sets it"
                )
    if prompts < rollout.batch_size:
        yield (
            f"data.prompt_dataset: {prompts} prompts are fewer than rollout.batch_size {rollout.batch_size}: every step "
            "has prompts several times"
        )
