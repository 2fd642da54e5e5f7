"""What a trainer rank answers the controller (standard library)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.types import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReady:
    """A rank can train now."""

    parameters: int
    """Of the whole model."""
    attention: str
    """As transformers knows it; ``packed_attention`` also where flash-attn was asked for and is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One rank's share of a rollout step."""

    sums: Mapping[str, float]
    """Sums over this rank's trained tokens of the updates that were done; ``tokens`` counts them (each epoch anew)."""
    values: Mapping[str, float]
    """Numbers that are the same on every rank; gradient norms are missing where no update was done."""
    outcomes: tuple[UpdateOutcome, ...]
    """Of each update, up to the one with which the rank gave up; the same on every rank."""
    spans: tuple[Span, ...]
    """What the rank did since its last report."""
