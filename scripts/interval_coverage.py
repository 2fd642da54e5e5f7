"""Simulate how often the intervals of an evaluation hold the truth, and print it as tables for docs/evaluation.md.

    python scripts/interval_coverage.py [--evaluations 1000] [--seed 0]

Problems' chances are Beta distributed with a mean and an intra-class correlation: 0 is problems that are all alike, 1
problems that are always or never solved. The intervals are those of :mod:`dapo_openrlhf.pipeline.intervals`, worked out for many
evaluations at once.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.pipeline.eval_metrics import paired_difference
from dapo_openrlhf.pipeline.intervals import CORRELATIONS, TAIL, correlation_weights, probability

MEANS = (0.05, 0.1, 0.3, 0.5, 0.8, 0.95)
PROBLEMS = (15, 30, 100, 500)
RESPONSES = (1, 4, 32)
SPREADS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)
COMPARED = (5, 8, 15, 30, 100)
CELLS = 500
"""Of p, on the scale of :func:`intervals.probability`: finer than the width of the narrowest interval here."""

Floats = NDArray[np.float64]


def log_likelihoods(responses: int) -> Floats:
    """[right, cells, correlations] beta-binomial, as ``intervals._log_likelihood``."""
    lgamma = np.vectorize(math.lgamma, otypes=[float])
    p = np.array([probability((cell + 0.5) / CELLS) for cell in range(CELLS)])[:, None]
    size = np.array([(1 - rho) / rho for rho in CORRELATIONS])
    a, b = p * size, (1 - p) * size
    nothing = lgamma(size) - lgamma(a) - lgamma(b)
    return np.stack(
        [
            lgamma(a + right) + lgamma(b + responses - right) - lgamma(size + responses) + nothing
            for right in range(responses + 1)
        ]
    )


def draw(chance: np.random.Generator, mean: float, spread: float, shape: tuple[int, int]) -> Floats:
    """Problems' chances of a right response."""
    if spread == 0:
        return np.full(shape, mean)
    if spread == 1:
        return (chance.random(shape) < mean).astype(float)
    size = (1 - spread) / spread
    return chance.beta(mean * size, (1 - mean) * size, shape)


def coverage(counts: NDArray[np.int64], tables: Floats, mean: float) -> float:
    """Share of evaluations, counts [evaluations, problems] of right responses, whose interval holds the mean."""
    responses = len(tables) - 1
    held = 0
    for part in np.array_split(counts, max(1, len(counts) // 50)):
        histogram = np.stack([(part == right).sum(1) for right in range(responses + 1)], 1).astype(float)
        logs = np.tensordot(histogram, tables, 1)
        masses = np.exp(logs - logs.max((1, 2), keepdims=True)) @ np.array(correlation_weights())
        below = np.concatenate([np.zeros((len(part), 1)), masses.cumsum(1)], 1)
        place = 2 / math.pi * math.asin(math.sqrt(mean)) * CELLS
        cell = int(place)
        share = (below[:, cell] + (place - cell) * masses[:, cell]) / below[:, -1]
        right = part.sum(1)
        low = (share >= TAIL) | (right == 0)
        high = (share <= 1 - TAIL) | (right == responses * part.shape[1])
        held += int((low & high).sum())
    return held / len(counts)


def accuracies(evaluations: int, seed: int) -> None:
    """Print coverage of avg@n by problems, responses and mean, over spreads; and which cells lie outside."""
    chance = np.random.default_rng(seed)
    outside: list[tuple[float, int, int, float, float]] = []
    cells = 0
    print("| problems | responses | " + " | ".join(f"p = {mean:g}" for mean in MEANS) + " |")
    print("|--:|--:|" + "--:|" * len(MEANS))
    tables = {responses: log_likelihoods(responses) for responses in RESPONSES}
    for problems, responses in itertools.product(PROBLEMS, RESPONSES):
        row = []
        for mean in MEANS:
            shares = []
            for spread in SPREADS if responses > 1 else (1.0,):
                rates = draw(chance, mean, spread, (evaluations, problems))
                share = coverage(chance.binomial(responses, rates), tables[responses], mean)
                shares.append(share)
                cells += 1
                if not 0.93 <= share <= 0.97:
                    outside.append((share, problems, responses, mean, spread))
            row.append(" to ".join(f"{100 * share:.1f}" for share in sorted({min(shares), max(shares)})))
        print(f"| {problems} | {responses} | " + " | ".join(row) + " |", flush=True)
    tolerance = 2 * math.sqrt(0.05 * 0.95 / evaluations)
    below = [cell for cell in outside if cell[0] < 0.93]
    far = [cell for cell in below if cell[0] < 0.93 - tolerance]
    print(
        f"\n{cells} cells of {evaluations} evaluations: {cells - len(outside)} within 93 to 97 %, {len(below)} below "
        f"({len(far)} of them by more than twice the simulation's own error), {len(outside) - len(below)} above."
    )
    for share, problems, responses, mean, spread in sorted(below)[:8]:
        print(
            f"- {100 * share:.1f} %: {problems} problems, {responses} responses, p = {mean:g}, correlation {spread:g}"
        )


def differences(evaluations: int, seed: int) -> None:
    """Print coverage of the difference of two evaluations on the same problems."""
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
        low, middle, high = min(shares), float(np.median(shares)), max(shares)
        print(f"| {problems} | {100 * low:.1f} | {100 * middle:.1f} | {100 * high:.1f} |", flush=True)


def _held(rows: Floats, responses: int, truth: float) -> float:
    """Share of evaluations, differences [evaluations, problems], whose interval holds the truth."""
    numbers = [responses] * rows.shape[1]
    estimates = (paired_difference(row, numbers) for row in rows.tolist())
    return sum(estimate.low <= truth <= estimate.high for estimate in estimates) / len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=1000, help="simulated for each cell (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    accuracies(options.evaluations, options.seed)
    differences(options.evaluations, options.seed)


if __name__ == "__main__":
    main()
