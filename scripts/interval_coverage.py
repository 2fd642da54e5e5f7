"""Simulate how often the intervals of an evaluation hold the truth, and print it as tables for docs/evaluation.md.

    python scripts/interval_coverage.py [--evaluations 4000] [--seed 0] [--only methods|choices|differences]

Problems' chances are Beta distributed with a mean and an intra-class correlation: 0 is problems that are all alike, 1
problems that are always or never solved. The intervals are those of :mod:`dapo_openrlhf.pipeline.intervals`, worked out for
many evaluations at once, and beside them those of other methods on the same evaluations.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.pipeline.eval_metrics import maj_at_k, paired_difference, pass_at_k
from dapo_openrlhf.pipeline.intervals import TAIL, correlation, prior, t_quantile

MEANS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""All methods treat right and wrong alike: at 0.95 they cover what they do at 0.05."""
PROBLEMS = (15, 30, 100, 500)
RESPONSES = (1, 4, 32)
SPREADS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)
CHOSEN = ((4, 4), (32, 8))
"""Responses, and of how many of them pass@k and maj@k choose."""
COMPARED = (5, 8, 15, 30, 100)
CELLS, AT_ONCE = 90, 300
"""Of p; and evaluations of which the posterior is in memory."""
Z = 1.959963984540054

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """Many evaluations of as many problems."""

    histogram: Floats
    """[evaluations, n + 1]: problems with so many of n responses right."""
    values: Floats
    """[n + 1]: what a problem counts for with so many right, in [0, 1]."""
    trials: float
    """The number of trials in which that is the share of successes."""
    truth: float
    """Expectation of a problem's value."""

    @property
    def problems(self) -> int:
        """The number of problems in each evaluation."""
        return int(self.histogram[0].sum())

    @property
    def means(self) -> Floats:
        """What each evaluation measures."""
        means: Floats = self.histogram @ self.values / self.problems
        return means

    @property
    def variances(self) -> Floats:
        """The variance of problems' values in each evaluation, unbiased."""
        squares: Floats = self.histogram @ self.values**2 / self.problems - self.means**2
        return squares * self.problems / (self.problems - 1)

    def of_shares(self, below: Floats) -> Flags:
        """Whether intervals hold the truth, given the probability that they see below it."""
        low = (below >= TAIL) | (self.means < 1e-9)
        high = (below <= 1 - TAIL) | (self.means > 1 - 1e-9)
        return low & high


def log_gamma(x: Floats) -> Floats:
    """Stirling's series at x + 8, and the recurrence down to x > 0."""
    shift = np.sum([np.log(x + step) for step in range(8)], axis=0)
    y = x + 8
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5)
    logs: Floats = (y - 0.5) * np.log(y) - y + 0.5 * math.log(2 * math.pi) + series - shift
    return logs


def places(problems: int, truth: float) -> tuple[Floats, int]:
    """Edges between cells of p on the arcsine scale, as far as a posterior may reach; and which of them is the truth."""
    middle, reach = math.asin(math.sqrt(truth)), 4.2 / math.sqrt(problems)
    first, last = max(0.0, middle - reach), min(math.pi / 2, middle + reach)
    below = min(CELLS - 2, max(2, round(CELLS * (middle - first) / (last - first))))
    above = np.linspace(middle, last, CELLS - below + 1)
    return np.concatenate([np.linspace(first, middle, below + 1), above[1:]]), below


def correlations(problems: int) -> list[float]:
    """Equally probable beforehand; many problems tell more of them apart."""
    cells = 30 + problems // 7
    return [correlation((index + 0.5) / cells) for index in range(cells)]


def log_likelihoods(p: Floats, rhos: Sequence[float], values: Floats, trials: float) -> Floats:
    """[outcomes, cells, correlations] of beta-binomial counts, as ``intervals._log_likelihood``."""
    size = np.array([(1 - rho) / rho for rho in rhos])
    a, b = p[:, None] * size, (1 - p[:, None]) * size
    nothing = log_gamma(size) - log_gamma(a) - log_gamma(b) - log_gamma(size + trials)
    return np.stack([log_gamma(a + right) + log_gamma(b + trials - right) + nothing for right in values * trials])


@dataclass(frozen=True, slots=True)
class Priors:
    """Of a beta-binomial model: of p on the arcsine scale, and of each of the correlations."""

    density: Callable[[float], float]
    weights: Callable[[Sequence[float]], Sequence[float]]


def jeffreys_weights(rhos: Sequence[float]) -> list[float]:
    """Jeffreys' prior between the middles to a correlation's neighbours."""
    middles = [0.0, *((a + b) / 2 for a, b in pairwise(rhos)), 1.0]
    return [math.asin(math.sqrt(b)) - math.asin(math.sqrt(a)) for a, b in pairwise(middles)]


OURS = Priors(prior, lambda rhos: [1.0] * len(rhos))
PRIORS = {
    "beta-binomial, priors as above": OURS,
    "beta-binomial, Jeffreys' priors": Priors(lambda p: 1.0, jeffreys_weights),
}


def beta_binomial(evaluations: Evaluations, priors: Sequence[Priors]) -> list[Flags]:
    """Whether the central intervals of the posterior hold the truth, under each of the priors."""
    edges, below = places(evaluations.problems, evaluations.truth)
    p = np.sin((edges[1:] + edges[:-1]) / 2) ** 2
    masses = np.stack([np.diff(edges) * [one.density(x) for x in p] for one in priors], 1)
    rhos = correlations(evaluations.problems)
    weights = np.array([one.weights(rhos) for one in priors], dtype=np.float32).T
    table = log_likelihoods(p, rhos, evaluations.values, evaluations.trials)
    table = table.reshape(len(table), -1).astype(np.float32)
    seen, which = np.unique(evaluations.histogram, axis=0, return_inverse=True)
    shares = []
    for start in range(0, len(seen), AT_ONCE):
        logs = seen[start : start + AT_ONCE].astype(np.float32) @ table
        logs -= logs.max(1, keepdims=True)
        probable = (np.exp(logs, out=logs).reshape(-1, len(rhos)) @ weights).reshape(-1, *masses.shape) * masses
        shares.append(probable[:, :below].sum(1) / probable.sum(1))
    found = np.concatenate(shares)[which.ravel()]
    return [evaluations.of_shares(found[:, index]) for index in range(len(priors))]


def effective(evaluations: Evaluations) -> Floats:
    """Responses worth as much, from the variance between problems; where that cannot be seen, problems."""
    mean = evaluations.means
    alone = mean * (1 - mean) * evaluations.problems / (evaluations.problems - 1)
    scaled, unseen = evaluations.variances * evaluations.trials, np.full_like(alone, np.inf)
    ratio = np.divide(scaled, alone, where=alone > 1e-9, out=unseen)
    design: Floats = np.clip(ratio, 1, max(1.0, evaluations.trials))
    return evaluations.problems * evaluations.trials / design


def wilson(evaluations: Evaluations, quantile: float) -> Flags:
    """Wilson's interval on the effective number of responses."""
    mean, number, square = evaluations.means, effective(evaluations), quantile * quantile
    centre = (mean + square / 2 / number) / (1 + square / number)
    reach = quantile / (1 + square / number) * np.sqrt(mean * (1 - mean) / number + square / 4 / number**2)
    held: Flags = np.abs(centre - evaluations.truth) <= reach
    return held


def effective_jeffreys(evaluations: Evaluations) -> Flags:
    """Jeffreys' interval on the effective number of responses."""
    edges, below = places(evaluations.problems, evaluations.truth)
    p = np.sin((edges[1:] + edges[:-1]) / 2) ** 2
    mean, number = evaluations.means[:, None], effective(evaluations)[:, None]
    logs = number * (mean * np.log(p) + (1 - mean) * np.log1p(-p))
    probable = np.exp(logs - logs.max(1, keepdims=True)) * np.diff(edges)
    return evaluations.of_shares(probable[:, :below].sum(1) / probable.sum(1))


def student(evaluations: Evaluations) -> Flags:
    """Student's interval of problems' values."""
    reach = t_quantile(evaluations.problems - 1) * np.sqrt(evaluations.variances / evaluations.problems)
    held: Flags = np.abs(evaluations.means - evaluations.truth) <= reach
    return held


METHODS: Mapping[str, Callable[[Evaluations], Flags]] = {
    "Wilson on the effective number, z": lambda evaluations: wilson(evaluations, Z),
    "Wilson on the effective number, t": lambda evaluations: wilson(evaluations, t_quantile(evaluations.problems - 1)),
    "Jeffreys on the effective number": effective_jeffreys,
    "Student, of problems' values": student,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is simulated."""

    problems: int
    responses: int
    mean: float
    spread: float

    def __str__(self) -> str:
        return f"{self.problems} problems, {self.responses} responses, p = {self.mean:g}, correlation {self.spread:g}"


def draw(chance: np.random.Generator, mean: float, spread: float, shape: tuple[int, ...]) -> Floats:
    """Problems' chances of a right response."""
    if spread == 0:
        return np.full(shape, mean)
    if spread == 1:
        return (chance.random(shape) < mean).astype(float)
    size = (1 - spread) / spread
    return chance.beta(mean * size, (1 - mean) * size, shape)


def histogram(chance: np.random.Generator, setting: Setting, evaluations: int) -> Floats:
    """[evaluations, responses + 1]"""
    rates = draw(chance, setting.mean, setting.spread, (evaluations, setting.problems))
    counts = chance.binomial(setting.responses, rates)
    rows = np.arange(evaluations)[:, None] * (setting.responses + 1)
    flat = np.bincount((counts + rows).ravel(), minlength=evaluations * (setting.responses + 1))
    return flat.reshape(evaluations, -1).astype(float)


def settings(responses: Sequence[int]) -> Iterator[Setting]:
    """All of them; with one response of each problem, correlations make no difference."""
    for problems, count, mean in itertools.product(PROBLEMS, responses, MEANS):
        for spread in SPREADS if count > 1 else (1.0,):
            yield Setting(problems=problems, responses=count, mean=mean, spread=spread)


def accuracies(evaluations: int, seed: int) -> Iterator[tuple[Setting, dict[str, float]]]:
    """Coverage of avg@n in each setting by method."""
    chance = np.random.default_rng(seed)
    for setting in settings(RESPONSES):
        n = setting.responses
        seen, values = histogram(chance, setting, evaluations), np.arange(n + 1) / n
        drawn = Evaluations(histogram=seen, values=values, trials=n, truth=setting.mean)
        held = dict(zip(PRIORS, beta_binomial(drawn, list(PRIORS.values())), strict=True))
        held |= {name: method(drawn) for name, method in METHODS.items()}
        yield setting, {name: float(flags.mean()) for name, flags in held.items()}


def choices(evaluations: int, seed: int, value: Callable[[int, int, int], float]) -> Iterator[tuple[Setting, float]]:
    """Coverage of pass@k or maj@k, where the truth lies between 5 and 95 %."""
    chance = np.random.default_rng(seed)
    for setting in settings(list(dict(CHOSEN))):
        n, k = setting.responses, dict(CHOSEN)[setting.responses]
        values = np.array([value(n, right, k) for right in range(n + 1)])
        rates = draw(chance, setting.mean, setting.spread, (1_000_000,))
        truth = float(values[chance.binomial(n, rates)].mean())
        if 0.05 <= truth <= 0.95:
            drawn = histogram(chance, setting, evaluations)
            of_k = Evaluations(histogram=drawn, values=values, trials=n / k, truth=truth)
            yield setting, float(beta_binomial(of_k, [OURS])[0].mean())


def print_accuracies(covered: Mapping[Setting, float]) -> None:
    """Smallest and largest over the spreads, by problems, responses and mean."""
    print("| problems | responses | " + " | ".join(f"p = {mean:g}" for mean in MEANS) + " |")
    print("|--:|--:|" + "--:|" * len(MEANS))
    for problems, responses in itertools.product(PROBLEMS, RESPONSES):
        row = []
        for mean in MEANS:
            at = (problems, responses, mean)
            shares = [share for one, share in covered.items() if (one.problems, one.responses, one.mean) == at]
            row.append(" to ".join(f"{100 * share:.1f}" for share in sorted({min(shares), max(shares)})))
        print(f"| {problems} | {responses} | " + " | ".join(row) + " |")


def print_summary(rows: Mapping[str, Mapping[Setting, float]]) -> None:
    """How many settings lie within and outside of 93 to 97 %, a row for each name."""
    print("\n| | settings | within 93 to 97 | below | above | smallest | median | largest |")
    print("|---|" + "--:|" * 7)
    for name, covered in rows.items():
        shares = np.array(list(covered.values()))
        below, above = int((shares < 0.93).sum()), int((shares > 0.97).sum())
        figures = " | ".join(f"{100 * share:.1f}" for share in (shares.min(), np.median(shares), shares.max()))
        print(f"| {name} | {len(shares)} | {len(shares) - below - above} | {below} | {above} | {figures} |")


def print_outside(covered: Mapping[Setting, float]) -> None:
    """The settings outside of 93 to 97 %."""
    print()
    for setting, share in sorted(covered.items(), key=lambda item: item[1]):
        if not 0.93 <= share <= 0.97:
            print(f"- {100 * share:.1f} %: {setting}")


def print_differences(evaluations: int, seed: int) -> None:
    """Coverage of the difference of two evaluations on the same problems."""
    chance = np.random.default_rng(seed)
    print("\n| problems | smallest | median | largest |\n|--:|--:|--:|--:|")
    for problems in COMPARED:
        shares = []
        for responses, spread, alike, mean, better in itertools.product(
            (1, 4, 32), (0.0, 0.3, 0.6, 1.0), (0.5, 0.9), (0.1, 0.5), (0.0, 0.1)
        ):
            shape = (evaluations, problems)
            first = draw(chance, mean, spread, shape)
            second = np.where(chance.random(shape) < alike, first, draw(chance, mean, spread, shape))
            second = second + better * (1 - second) / (1 - mean)
            counts = chance.binomial(responses, second) - chance.binomial(responses, first)
            shares.append(_held(counts / responses, responses, better))
        row = [f"{100 * share:.1f}" for share in (min(shares), float(np.median(shares)), max(shares))]
        print(f"| {problems} | {' | '.join(row)} |", flush=True)


def _held(rows: Floats, responses: int, truth: float) -> float:
    """Share of evaluations, differences [evaluations, problems], whose interval holds the truth."""
    estimates = (paired_difference(row, [responses] * len(row)) for row in rows.tolist())
    return sum(estimate.low <= truth <= estimate.high for estimate in estimates) / len(rows)


def majority(n: int, right: int, k: int) -> float:
    """maj@k where all wrong responses agree."""
    return maj_at_k(right, [n - right] if right < n else [], abstained=0, k=k)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=4000, help="simulated for each setting (default 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("methods", "choices", "differences"), help="one table (default: all)")
    options = parser.parse_args(arguments)
    size, seed, only = options.evaluations, options.seed, options.only
    if only in (None, "methods"):
        found = list(accuracies(size, seed))
        covered = {name: {setting: row[name] for setting, row in found} for name in found[0][1]}
        chosen = covered[next(iter(PRIORS))]
        print_accuracies(chosen)
        print_summary(covered)
        print_outside(chosen)
    if only in (None, "choices"):
        covered = {"pass@k": dict(choices(size, seed, pass_at_k)), "maj@k": dict(choices(size, seed, majority))}
        print_summary(covered)
        for name, rows in covered.items():
            print(f"\n{name}:")
            print_outside(rows)
    if only in (None, "differences"):
        print_differences(size, seed)


if __name__ == "__main__":
    main()
