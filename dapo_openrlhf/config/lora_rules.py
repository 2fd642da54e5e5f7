"""Rules about adapters and what they go with (standard library)."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.algorithm.choices import ESTIMATORS
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.training import LoraSection
from dapo_openrlhf.config.typed import typed

ALL_LINEAR = "all-linear"


def impossible_adapters(config: Config) -> Iterator[str]:
    """Yield a sentence for each combination of settings of adapters that cannot run, or would not mean what it says."""
    lora, nothing = config.ds.lora, LoraSection()
    if lora.rank == 0:
        for name, value in lora:
            if value != getattr(nothing, name):
                yield (
                    f"ds.lora.{name}: {typed(value)} has no meaning with ds.lora.rank 0, which trains the whole model; set "
                    "ds.lora.rank, such as 8, or leave it out"
                )
        return
    if lora.dropout:
        yield (
            f"ds.lora.dropout: {lora.dropout:g} would train another policy than the one that samples, which has no dropout, "
            "and a ratio of the two would be noise; use 0"
        )
    if ALL_LINEAR in lora.target_modules and len(lora.target_modules) > 1:
        yield f"ds.lora.target_modules: {ALL_LINEAR} is every layer already; leave the others out, or leave it out"
    if ESTIMATORS[config.algo.advantage.estimator].critic:
        yield (
            f"algo.advantage.estimator: {config.algo.advantage.estimator} trains a critic, and that as a whole, where "
            f"ds.lora.rank {lora.rank} is to train adapters only; use group_norm or another without a critic, or ds.lora.rank 0"
        )
