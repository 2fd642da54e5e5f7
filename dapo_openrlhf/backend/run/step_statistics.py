"""Combines the reports of all ranks on a rollout step into the metrics of that step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dapo_openrlhf.backend.trainer.reports import StepReport
from dapo_openrlhf.pipeline.agreement import FRESH_KL


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over all ranks and over a step's updates."""

    sums: Mapping[str, float]
    updates: int
    """Number of updates that were done, at least 1."""

    @property
    def tokens(self) -> float:
        """Number of trained tokens, at least 1."""
        return max(self.sums["tokens"], 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A metric, and how it is computed from the ranks' sums."""

    name: str
    sums: tuple[str, ...]
    """Names of all sums that it is computed from; the metric is shown if ranks report them."""
    value: Callable[[Totals], float | None]
    """Computes the metric; None if there is nothing to show because nothing of its kind was trained."""


def _per_token(name: str, shown: str | None = None) -> Statistic:
    return Statistic(name=shown or name, sums=(name,), value=lambda totals: totals.sums[name] / totals.tokens)


def _per_update(name: str) -> Statistic:
    """The mean of a loss over updates: the ranks' sums together are the sum of the losses of all updates."""
    return Statistic(name=name, sums=(name,), value=lambda totals: totals.sums[name] / totals.updates)


def _effective_sample_size(totals: Totals) -> float:
    """Effective sample size as a share of the tokens: (sum w)^2 / (n sum w^2)."""
    return totals.sums["is_weight"] ** 2 / max(totals.sums["is_weight_squared"] * totals.tokens, 1e-12)


def _per_fresh_token(totals: Totals) -> float | None:
    """Mean KL over tokens that were sampled with the weights that the step began with."""
    fresh = totals.sums["fresh_tokens"]
    return totals.sums["fresh_kl"] / fresh if fresh else None


def _explained_variance(totals: Totals) -> float:
    """Share of the returns' variance that the values explain: 1 - Var(return - value) / Var(return), at most 1."""
    sums, tokens = totals.sums, totals.tokens
    variance = sums["return_squared"] / tokens - (sums["return"] / tokens) ** 2
    unexplained = sums["value_error_squared"] / tokens - (sums["value_error"] / tokens) ** 2
    return 1 - unexplained / max(variance, 1e-12)


STATISTICS = (
    _per_token("entropy"),
    _per_token("token_probability"),
    _per_token("clip_fraction"),
    _per_token("ratio"),
    _per_token("kl"),
    _per_token("is_weight", "is_weight/mean"),
    _per_token("is_outside", "is_weight/outside"),
    _per_token("rollout_kl"),
    Statistic(name="is_weight/ess", sums=("is_weight", "is_weight_squared"), value=_effective_sample_size),
    _per_update("loss"),
    Statistic(name=FRESH_KL, sums=("fresh_kl", "fresh_tokens"), value=_per_fresh_token),
    _per_update("aux_loss"),
    _per_update("value_loss"),
    _per_token("value"),
    Statistic(
        name="explained_variance",
        sums=("return", "return_squared", "value_error", "value_error_squared"),
        value=_explained_variance,
    ),
)
"""All metrics that are computed from ranks' sums. A sum that none of them uses is refused."""

SUMS = frozenset({"tokens"}.union(*(statistic.sums for statistic in STATISTICS)))
"""Names of the sums that ranks may report."""


class UnknownSum(ValueError):
    """A rank reported a sum that no metric uses."""


def step_statistics(reports: Sequence[StepReport]) -> dict[str, float]:
    """Sums over ranks as means per trained token, and the values on which all ranks agree.

    If no update was done, there are no means. Raises :class:`UnknownSum` for a sum that nothing in :data:`STATISTICS`
    uses.
    """
    outcomes = reports[0].outcomes
    updates = sum(not outcome.not_finite for outcome in outcomes)
    skipped = {
        "updates/bad": float(sum(outcome.bad for outcome in outcomes)),
        "updates/overflow": float(sum(outcome.overflow for outcome in outcomes)),
    }
    if not updates:
        return skipped | dict(reports[0].values)
    totals = Totals(sums=_added(reports), updates=updates)
    measured = {one.name: one.value(totals) for one in STATISTICS if totals.sums.keys() >= set(one.sums)}
    statistics = {name: value for name, value in measured.items() if value is not None}
    return statistics | skipped | dict(reports[0].values)


def _added(reports: Sequence[StepReport]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        for name, value in report.sums.items():
            sums[name] += value
    unknown = sorted(sums.keys() - SUMS)
    if unknown:
        raise UnknownSum(f"trainer ranks report {', '.join(unknown)}, of which step_statistics.STATISTICS make nothing")
    return dict(sums)
