"""What each way with late groups costs where responses are long: the pipeline's own code in virtual time.

    python -m scripts.experiments.staleness.late

Waiting, cutting, and dropping by age, over the same engines and lengths with a heavy tail (log-normal, up to 20,480 tokens)
and a trainer that is a little faster than the engines. Takes a minute, whatever else the machine does.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from unittest import mock

from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.pipeline.staleness import StalenessPolicy
from dapo_openrlhf.plan import simulation
from dapo_openrlhf.plan.engine import SimulatedEngine
from dapo_openrlhf.plan.scenario import EngineSpeed, Scenario, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.types import Generation, Prompt
from scripts.experiments.staleness.dropping import DroppingPolicy

STALENESS = (1, 2, 4)
WAYS = ("wait", "cut", "drop by age")
SCENARIO = Scenario(
    engines=4,
    engine=EngineSpeed(step=0.012, per_sequence=2e-5, per_context_token=1.5e-8, latency=0.1),
    trainer=TrainerSpeed(step=5.0, per_token=4e-5),
    sync=SyncSpeed(send=1.0, deliver=1.5, pause=0.5),
    work=Work.drawn(
        groups=2000,
        responses=8,
        mean=3000,
        spread=1.2,
        most=20_480,
        pass_rate=1.0,
        prompt_tokens=150,
        reward_seconds=0.5,
    ),
    batch_size=64,
    max_staleness=1,
    filtered=False,
    over_sampling=1.0,
    steps=40,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one way came to."""

    max_staleness: int
    way: str
    tokens_per_second: float
    """Trained response tokens."""
    mean_age: float
    thrown_away: float
    """Share of all sampled tokens, 0 to 1: of dropped groups, in flight or finished."""
    cut: float
    """Share of the trained responses."""
    length: float
    """Mean length of a trained response over that of all responses there are."""


class WatchedEngine(SimulatedEngine):
    """Notes how many tokens a request had when it was stopped."""

    stopped: dict[str, int]

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """As the engine does."""
        try:
            return await super().generate(request, prompt, sampling)
        except asyncio.CancelledError:
            self.stopped[request] = self._tokens_when_cut
            raise

    def cut(self, request: str) -> None:
        """End a group with the tokens so far."""
        group = self._groups.get(request)
        super().cut(request)
        self._tokens_when_cut = sum(group.lengths) if group else 0


def cost(max_staleness: int, way: str) -> Cost:
    """Simulate one way at one K."""
    scenario = replace(SCENARIO.at(max_staleness), cut_late=way == "cut")
    stopped: dict[str, int] = {}
    log = io.StringIO()
    with (
        mock.patch.object(simulation, "StalenessPolicy", DroppingPolicy if way == "drop by age" else StalenessPolicy),
        mock.patch.object(simulation, "SimulatedEngine", WatchedEngine),
        mock.patch.object(WatchedEngine, "stopped", stopped, create=True),
    ):
        found = simulation.simulate(scenario, file=log)
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    dropped = [event for event in events if event["event"] == "group_surplus"]
    finished = sum(event["response_tokens"] for event in events if event["event"] == "group_generated")
    in_flight = sum(stopped.get(f"group {event['group']}", 0) for event in dropped)
    batches = [event for event in events if event["event"] == "batch_taken"]
    lengths = [length for sample in scenario.work.samples for length in sample.lengths]
    trained = sum(event["response_tokens"] for event in batches) / sum(event["responses"] for event in batches)
    return Cost(
        max_staleness=max_staleness,
        way=way,
        tokens_per_second=found.tokens_per_second,
        mean_age=found.mean_age,
        thrown_away=(sum(event["response_tokens"] for event in dropped) + in_flight) / (finished + in_flight),
        cut=found.cut_share,
        length=trained / fmean(lengths),
    )


def table(costs: Iterator[Cost]) -> str:
    """Markdown, a row per way."""
    lines = ["| K | late groups | trained tokens/s | mean age | thrown away | cut | length |", "|--:|---|" + "--:|" * 5]
    lines += [
        f"| {one.max_staleness} | {one.way} | {one.tokens_per_second:,.0f} | {one.mean_age:.2f} | {one.thrown_away:.1%} "
        f"| {one.cut:.1%} | {one.length:.0%} |"
        for one in costs
    ]
    return "\n".join(lines)


def main() -> int:
    print(table(cost(k, way) for k in STALENESS for way in WAYS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
