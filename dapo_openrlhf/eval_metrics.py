"""Accuracy of repeated answers, and how sure it is (layer 0: standard library only).

Of one problem n responses were judged, c of them right. avg@n is the mean of c/n over problems; pass@k and maj@k are
expectations over all choices of k of the n responses, exact and not sampled. Problems, not responses, are the sampling
units of every interval: responses of the same problem are anything but independent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Z95 = 1.959963984540054
ALPHA_HALF = 0.025
"""Two-sided 95 % quantile of the normal distribution."""
RESAMPLES = 5_000
"""Of a bootstrap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float
    problems: int
    """How many the mean is over."""

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of the n responses, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), eq. 1. Integers until the last division: nothing cancels.
    """
    _check(n, k)
    choices = math.comb(n, k)
    return (choices - math.comb(n - c, k)) / choices


def maj_at_k(right: int, wrong: Sequence[int], *, abstained: int, k: int) -> float:
    """Chance that the most frequent answer among k of the n responses is right.

    ``right``: responses that agree on the right answer; ``wrong``: how many agree on each wrong one; ``abstained``:
    responses without an answer, which have no vote. A tie counts 1/t where t answers share the top; nobody answering is
    wrong. Exact: the votes for each answer in a choice of k are multivariate hypergeometric.
    """
    n = right + sum(wrong) + abstained
    _check(n, k)
    total = Fraction(0)
    for votes in range(1, min(right, k) + 1):
        # Answers too rare to reach as many votes, and those who abstain, only fill up: they are one pile.
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
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n)})


def over_problems(values: Sequence[float]) -> Estimate:
    """Mean of per-problem values in [0, 1] with its interval, 1.96 standard errors clustered by problem, cut off at 0 and 1.

    A problem's responses are one cluster: the error is that of the mean of the problems' means (Miller 2024,
    arXiv 2411.00640, eq. 1). One problem has no interval but [0, 1]. Where all problems are 0, or all 1, the error says
    nothing; then the exact binomial interval counts (Clopper and Pearson 1934), which is (0, 1 - 0.025^(1/n)) for zeros.
    """
    if not values:
        raise ValueError("no problem to take the mean of")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(value=mean, low=0.0, high=1.0, problems=1)
    if set(values) in ({0.0}, {1.0}):
        reach = 1 - ALPHA_HALF ** (1 / count)
        return Estimate(value=mean, low=max(0.0, mean - reach), high=min(1.0, mean + reach), problems=count)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)))
    return Estimate(value=mean, low=max(0.0, mean - Z95 * error), high=min(1.0, mean + Z95 * error), problems=count)


def paired_bootstrap(differences: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean of per-problem differences with its percentile bootstrap interval over problems (Efron 1979).

    The same numbers give the same interval, and adding one to all of them moves it by one.
    """
    if not differences:
        raise ValueError("no problem to compare")
    count = len(differences)
    chance = random.Random(seed)
    means = sorted(math.fsum(chance.choices(differences, k=count)) / count for _ in range(resamples))
    tail = round(0.025 * resamples)
    return Estimate(
        value=math.fsum(differences) / count, low=means[tail], high=means[resamples - 1 - tail], problems=count
    )


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} responses cannot be chosen from {n}")
