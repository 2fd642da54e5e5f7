"""Settings of where a run's numbers go besides its own folder (pydantic)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, assert_never

from pydantic import Field, model_validator

from dapo_openrlhf.config.choices import WandbMode
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.section import Section


class ReportSection(Section):
    wandb: WandbMode | None = None
    """Weights & Biases: ``online`` sends the numbers as they come, ``offline`` writes them below the run's folder for
    ``wandb sync``; null leaves it out. It needs the package wandb and, online, a key in WANDB_API_KEY or from
    ``wandb login``."""
    prometheus: bool = True
    """Give the numbers of every step to Ray as gauges, which its node agents serve to Prometheus."""

    samples: Annotated[int, Field(ge=0)] = 2
    """Number of groups of every rollout step of which one response is kept, in ``samples.jsonl`` and TensorBoard."""

    @property
    def wandb_uploads(self) -> bool | None:
        """Whether Weights & Biases gets the numbers at once; None where it gets none."""
        match self.wandb:
            case None:
                return None
            case "offline":
                return False
            case "online":
                return True
            case _:
                assert_never(self.wandb)


class WandbSection(Section):
    project: str = "dapo_openrlhf"
    """Project at Weights & Biases."""
    org: str | None = None
    """User or team that the project belongs to; null takes the key's own."""
    group: str | None = None
    """Group of runs that Weights & Biases shows together."""
    run_name: str | None = None
    """Name of the run there; null takes the name of the run's folder."""

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, settings: object) -> object:
        if isinstance(settings, Mapping) and "key" in settings:
            raise ConfigError(
                "logger.wandb.key: a key among the settings would be in config.yaml, in every checkpoint and in the list of "
                "processes; leave it out, put it into the environment as WANDB_API_KEY, and set report.wandb online"
            )
        return settings


class LoggerSection(Section):
    wandb: WandbSection = WandbSection()
