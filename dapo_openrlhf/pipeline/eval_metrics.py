"""Accuracy over repeated answers, and its uncertainty (standard library only).

For one problem n responses were judged, c of them right. avg@n is the mean of c/n over problems; pass@k and maj@k are
expectations over all choices of k of the n responses, exact and not sampled. Problems, not responses, are the sampling
units of every interval, since responses to the same problem are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from dapo_openrlhf.pipeline.intervals import mean_interval, t_quantile

FEWEST_PAIRS = 5
"""Fewest problems from which the interval of a difference is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float
    problems: int
    """Number of problems that the mean is over."""

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of the n responses, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), eq. 1. All numbers are integers until the last division, so nothing cancels.
    """
    _check(n, k)
    choices = math.comb(n, k)
    return (choices - math.comb(n - c, k)) / choices


def maj_at_k(right: int, wrong: Sequence[int], *, abstained: int, k: int) -> float:
    """Chance that the most frequent answer among k of the n responses is right.

    ``right``: responses that agree on the right answer; ``wrong``: how many agree on each wrong one; ``abstained``:
    responses without an answer, which have no vote. A tie counts 1/t where t answers share the top; no vote at all is
    wrong. Exact: the votes for each answer in a choice of k are multivariate hypergeometric.
    """
    n = right + sum(wrong) + abstained
    _check(n, k)
    total = Fraction(0)
    for votes in range(1, min(right, k) + 1):
        # Answers too rare to reach that many votes, and abstentions, only fill up the choice: they form one pile.
        pile = abstained + sum(size for size in wrong if size < votes)
        rivals = [size for size in wrong if size >= votes]
        for (taken, ties), ways in _rival_votes(rivals, votes, k - votes).items():
            filled = math.comb(pile, k - votes - taken)
            total += Fraction(math.comb(right, votes) * ways * filled, ties + 1)
    return float(total / math.comb(n, k))


def _rival_votes(rivals: Sequence[int], votes: int, room: int) -> dict[tuple[int, int], int]:
    """(Responses of all rivals together, rivals with exactly ``votes``) -> ways, with at most ``votes`` for each."""
    ways = {(0, 0): 1}
    for size in rivals:
        longer: dict[tuple[int, int], int] = {}
        for (taken, ties), count in ways.items():
            for own in range(min(votes, room - taken) + 1):
                key = (taken + own, ties + (own == votes))
                longer[key] = longer.get(key, 0) + count * math.comb(size, own)
        ways = longer
    return ways


def powers_of_two(n: int) -> list[int]:
    """The numbers 1, 2, 4, ... up to n, and n itself."""
    return sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n)})


def over_problems(values: Sequence[float], trials: Sequence[float]) -> Estimate:
    """Mean of per-problem values in [0, 1] with its 95 % interval, see :func:`intervals.mean_interval`.

    ``trials``: the number of trials of which each value is the share that succeeded: n for avg@n, n / k for pass@k and
    maj@k of n responses.
    """
    if not values:
        raise ValueError("no problem to take the mean of")
    mean = math.fsum(values) / len(values)
    low, high = mean_interval(values, trials)
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), problems=len(values))


def paired_difference(differences: Sequence[float], responses: Sequence[int]) -> Estimate:
    """Mean of per-problem differences in [-1, 1] with its 95 % interval over problems.

    ``responses``: number of responses to each problem, in the evaluation that has fewer. The interval is Student's, for
    the differences and one more problem, which is half better and half worse by the share of one response: this is how
    Agresti and Min (2005, Statistics in Medicine 24, section 3) amend Wald's interval of a difference of paired shares.
    Its width is never 0. For fewer than :data:`FEWEST_PAIRS` problems it is [-1, 1].
    """
    if not differences:
        raise ValueError("no problem to compare")
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < FEWEST_PAIRS:
        return Estimate(value=mean, low=-1.0, high=1.0, problems=count)
    step = math.fsum(1 / number for number in responses) / count
    centre = math.fsum(differences) / (count + 1)
    variance = (math.fsum(d * d for d in differences) + step * step) / (count + 1) - centre * centre
    reach = t_quantile(count) * math.sqrt(variance / count)
    return Estimate(
        value=mean,
        low=max(-1.0, min(mean, centre - reach)),
        high=min(1.0, max(mean, centre + reach)),
        problems=count,
    )


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} responses cannot be chosen from {n}")
