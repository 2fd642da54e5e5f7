"""What a trainer rank reports to the controller (standard library)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.types import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReady:
    """A rank's report that it can train now."""

    parameters: int
    """Number of parameters of the whole model."""
    attention: str
    """Name of the attention in transformers; ``packed_attention`` also if flash-attn was asked for but is not
    installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One rank's report on its share of a rollout step."""

    sums: Mapping[str, float]
    """Sums over this rank's trained tokens in the updates that were done; ``tokens`` is their number (each epoch
    anew)."""
    values: Mapping[str, float]
    """Numbers that are the same on every rank; gradient norms are missing if no update was done."""
    outcomes: tuple[UpdateOutcome, ...]
    """The outcome of each update, up to the one at which the rank gave up; the same on every rank."""
    spans: tuple[Span, ...]
    """The rank's spans since its last report."""
