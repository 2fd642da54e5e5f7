"""The ways of dividing devices between engines and trainer, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dapo_openrlhf.plan.bound import Bound, bound
from dapo_openrlhf.plan.prediction import Prediction
from dapo_openrlhf.plan.scenario import Scenario
from dapo_openrlhf.plan.simulation import simulate

STALENESS = (0, 1, 2, 4, 8)
"""The values of K that are looked at."""
SIMULATED_ENGINES = 8
"""A simulation has at most about as many engines: one of a hundred engines differs from eight only by chance."""
SIMULATED_GROUPS = 64
"""A simulation has at most about as many groups in a batch."""
SIMULATED_STEPS = 4000
"""A simulation has about as many groups in all its steps, but at least four steps after the first K."""
CANDIDATES = 2
"""Number of splits that are simulated for each K: those with the best bounds."""
WORTH = 1.10
"""Asynchrony pays if it trains at least this many times as many tokens per second as the best synchronous split."""
STEEP = 1.03
"""A larger K is recommended only for at least this much more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How many devices do what."""

    engines: int
    tensor_parallel: int
    ranks: int
    shared: bool = False
    """Whether the engines are on the trainer's devices."""

    @property
    def devices(self) -> int:
        """Number of devices in all."""
        return self.ranks if self.shared else self.engines * self.tensor_parallel + self.ranks

    def __str__(self) -> str:
        return f"{self.engines} x {self.tensor_parallel} : {self.ranks}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A split at one K, predicted."""

    split: Split
    prediction: Prediction
    bound: Bound

    @property
    def per_device(self) -> float:
        """Trained response tokens per second and device."""
        return self.prediction.tokens_per_second / self.split.devices

    @property
    def of_bound(self) -> float:
        """Share of what any schedule could reach on this split at this K, 0 to about 1."""
        return self.bound.step / self.prediction.step


def splits(devices: int, *, per_node: int, fits: Callable[[Split], bool]) -> Iterator[Split]:
    """Divisions of the devices in steps of about a twentieth, with engines of 1, 2, 4 ... GPUs of a machine."""
    step = max(1, devices // 20)
    for exponent in range(int(math.log2(per_node)) + 1):
        size = 2**exponent
        seen = set()
        for wanted in range(step, devices, step):
            engines = max(1, wanted // size)
            split = Split(engines=engines, tensor_parallel=size, ranks=devices - engines * size)
            if split.ranks >= 1 and engines not in seen and fits(split):
                seen.add(engines)
                yield split


def search(choices: Sequence[Split], scenario_of: Callable[[Split], Scenario]) -> list[Candidate]:
    """Predict the most promising splits at every K; all splits are compared by their bounds first."""
    scenarios = {split: scenario_of(split) for split in choices}
    found = []
    for max_staleness in STALENESS:
        at = {split: scenario.at(max_staleness) for split, scenario in scenarios.items()}
        best = sorted(at, key=lambda split: bound(at[split]).step)[:CANDIDATES]
        found += [predict(split, at[split]) for split in best]
    return found


def predict(split: Split, scenario: Scenario, *, steps: int | None = None) -> Candidate:
    """Simulate one split, made smaller where it is large; ``steps`` is the number of steps, of which some are counted."""
    factor = max(1, scenario.engines // SIMULATED_ENGINES, scenario.batch_size // SIMULATED_GROUPS)
    factor = min(factor, scenario.engines, scenario.batch_size)
    small = replace(
        scenario,
        engines=scenario.engines // factor,
        batch_size=max(1, round(scenario.batch_size * (scenario.engines // factor) / scenario.engines)),
    )
    small = replace(small, steps=steps or _steps(small))
    shrunk = small.batch_size / scenario.batch_size
    trainer = replace(scenario.trainer, per_token=scenario.trainer.per_token / shrunk)
    small = replace(small, trainer=trainer)
    prediction = simulate(small)
    whole = replace(
        prediction,
        trained_tokens=round(prediction.trained_tokens / shrunk),
        generated_tokens=round(prediction.generated_tokens / shrunk),
    )
    return Candidate(split=split, prediction=whole, bound=bound(small))


def _steps(scenario: Scenario) -> int:
    """How many steps to simulate: enough to count some after the queue has filled."""
    least, most = scenario.max_staleness + 4, 6 * (scenario.max_staleness + 1) + 6
    return max(least, min(most, round(SIMULATED_STEPS * scenario.work.pass_rate / scenario.batch_size)))


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one beats in both tokens per second and mean age, by age."""
    front: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.prediction.mean_age, -c.per_device)):
        if not front or one.per_device > front[-1].per_device:
            front.append(one)
    return front


def _unsure(candidate: Candidate) -> float:
    """How many times as many tokens per second another candidate must train to be clearly better."""
    error = candidate.prediction.error
    return STEEP if error is None else max(STEEP, 1 + error / candidate.prediction.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The candidate to take, and why."""

    chosen: Candidate
    reason: str


def _within(chosen: Candidate, more: float) -> str:
    error = chosen.prediction.error
    return ", which is within the error of this plan" if error is not None and more > STEEP - 1 else ""


def advise(candidates: Sequence[Candidate]) -> Advice:
    """The smallest K beyond which more age brings little, on its best split."""
    synchronous = max((c for c in candidates if c.prediction.max_staleness == 0), key=lambda c: c.per_device)
    best = max(candidates, key=lambda c: c.per_device)
    if best.per_device < WORTH * synchronous.per_device:
        gain = best.per_device / synchronous.per_device
        reason = (
            f"asynchrony does not pay here: the best split at K > 0 trains {gain:.2f} times as many tokens per second as "
            "the best synchronous one"
        )
        return Advice(chosen=synchronous, reason=reason)
    enough = [c for c in candidates if c.per_device * _unsure(c) >= best.per_device]
    chosen = min(enough, key=lambda c: (c.prediction.max_staleness, -c.per_device))
    more = best.per_device / chosen.per_device - 1
    reason = (
        f"it trains {chosen.per_device / synchronous.per_device:.2f} times as many tokens per second as the best "
        f"synchronous split; a larger K would add {more:.0%} at most{_within(chosen, more)}"
    )
    return Advice(chosen=chosen, reason=reason)
