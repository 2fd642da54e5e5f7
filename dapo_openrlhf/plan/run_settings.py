"""The settings of a run that matter to a plan, from its log and the configuration beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.events import RunStarted
from dapo_openrlhf.plan.observed import Life

ENGINE_SEQUENCES = 512
"""Most responses that an engine runs at once where ``vllm.max_num_seqs`` is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How the run was set up."""

    engines: int
    tensor_parallel: int
    ranks: int
    devices: int
    batch_size: int
    """P, the number of groups in a step."""
    max_staleness: int
    shared: bool
    """Whether engines and trainer share devices or the cores of a machine, and may slow each other down."""
    filtered: bool
    over_sampling: float | None
    """Fixed factor, or None for the measured one."""
    cut_late: bool
    most_sequences: int
    update: int | None
    """Number of responses in an update, of which each rank takes as many; None where it is not known."""

    @classmethod
    def of(cls, life: Life, config: Config | None) -> Self:
        """The settings of a life: of the run as its log says, of the rest as the configuration says.

        Without a configuration the pipeline's defaults are assumed, and that groups are filtered if some were dropped.
        """
        begun = life.begun
        inference = begun.devices - begun.trainer_ranks
        dropped = any(group.keep is False for group in life.groups.values())
        return cls(
            engines=begun.engines,
            tensor_parallel=max(1, inference // begun.engines),
            ranks=begun.trainer_ranks,
            devices=begun.devices,
            batch_size=begun.batch_size,
            max_staleness=begun.max_staleness,
            shared=inference <= 0 or (config is not None and (config.device == "cpu" or config.train.colocate_all)),
            filtered=dropped if config is None else config.algo.dynamic_filtering_enable,
            over_sampling=None if config is None else config.async_.over_sampling_factor,
            cut_late=config is not None and config.async_.cut_late,
            most_sequences=(config and config.vllm.max_num_seqs) or ENGINE_SEQUENCES,
            update=None if config is None else config.train.batch_size,
        )


def config_beside(folder: Path) -> tuple[Config | None, str | None]:
    """The configuration of a run, or None and a sentence on what is assumed instead."""
    file = folder / "config.yaml"
    assumed = "the defaults are assumed for over-sampling, deadlines and what else the log does not say"
    if not file.is_file():
        return None, f"there is no {file}: {assumed}"
    try:
        return load_config(file, {}), None
    except ConfigError as error:
        return None, f"{file} is no configuration of this version ({str(error).splitlines()[0]}): {assumed}"


def differences(begun: RunStarted, config: Config) -> list[str]:
    """Sentences on where a configuration differs from what the run's log says; the log counts."""
    pairs = {
        "async.max_staleness": (config.async_.max_staleness, begun.max_staleness),
        "rollout.batch_size": (config.rollout.batch_size, begun.batch_size),
        "vllm.num_engines": (config.vllm.num_engines, begun.engines),
    }
    return [
        f"{name} is {written} in config.yaml, but these steps ran with {ran}, as their log says; {ran} is taken"
        for name, (written, ran) in pairs.items()
        if written != ran
    ]
