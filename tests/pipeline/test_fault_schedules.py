"""Random schedules of faults through the real queue, pool, rollout loop and conductor, in virtual time.

Every run is made by its seed alone: ``play(seed)`` is the run that a failure names.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fakes import DEADLY, PERMANENT, FakeEngine, FakeGroup, FakeScorer, World, build, check_prompts, fates, filtered

from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.engine_pool import EngineUnusable
from dapo_openrlhf.pipeline.events import (
    Checkpointed,
    EngineGivenUp,
    EngineLost,
    EngineReplaced,
    GroupFailed,
    PromptDropped,
    PublicationLive,
)
from dapo_openrlhf.pipeline.health import HealthLimits
from dapo_openrlhf.pipeline.ports import GroupError, PromptFault
from dapo_openrlhf.pipeline.stop import StopRequest
from dapo_openrlhf.pipeline.suspects import FAILS, KILLS_ENGINES
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Prompt

pytestmark = pytest.mark.long

SCHEDULES = 1500
CHUNKS = 15
PROMPTS = 400
LATEST = 20_000.0
"""Virtual seconds after which a run counts as stuck; the longest ones take a tenth of that."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a seed makes of a run."""

    engines: int
    batch_size: int
    max_staleness: int
    steps: int
    max_restarts: int
    report_seconds: float
    """The longest that the news of a death takes."""
    killers: frozenset[int]
    bad: frozenset[int]
    faults: tuple[tuple[float, str, int], ...]
    """Seconds, what happens, and to which engine."""
    stops: tuple[float, ...]
    saves: tuple[float, ...]

    @classmethod
    def of(cls, dice: random.Random) -> Plan:
        engines = dice.randint(1, 3)
        kinds = dice.choices(["die", "hang", "slow"], [3, 2, 1], k=dice.randint(0, 7))
        end = dice.choice([10.0, 60.0])
        numbers = list(range(PROMPTS))
        return cls(
            engines=engines,
            batch_size=dice.randint(1, 3),
            max_staleness=dice.randint(0, 3),
            steps=dice.randint(2, 6),
            max_restarts=dice.choice([0, 1, 2, 3, 3]),
            report_seconds=dice.choice([0.0, 0.0, 1.0, 30.0]),
            killers=frozenset(dice.sample(numbers, dice.choice([0, 0, 0, 20]))),
            bad=frozenset(dice.sample(numbers, dice.choice([0, 0, 20]))),
            faults=tuple((dice.uniform(0.0, end), kind, dice.randrange(engines)) for kind in kinds),
            stops=tuple(sorted(dice.uniform(0.0, 60.0) for _ in range(dice.choice([0, 0, 0, 0, 1, 2])))),
            saves=tuple(dice.uniform(0.0, 60.0) for _ in range(dice.choice([0, 0, 1]))),
        )


@dataclass(kw_only=True)
class Played:
    plan: Plan
    world: World
    seed: int
    outcome: Outcome | None = None
    """None if the run ended with ``error``."""
    error: BaseException | None = None


def play(seed: int) -> Played:
    dice = random.Random(seed)
    plan = Plan.of(dice)
    slow: set[tuple[int, int]] = set()
    engines: list[FakeEngine] = []

    def latency(index: int) -> Callable[[], float]:
        return lambda: dice.uniform(0.5, 6.0) * (20.0 if (index, engines[index].life) in slow else 1.0)

    def fault(prompt: Prompt) -> GroupError | float | None:
        if prompt.id in plan.killers:
            return DEADLY
        if prompt.id in plan.bad:
            return PromptFault("prompt_too_long", "9000 tokens")
        return GroupError("engine_error", "out of luck") if dice.random() < 0.03 else None

    def score_fault(group: FakeGroup) -> GroupError | None:
        return GroupError("reward_error", "no") if dice.random() < 0.03 else None

    def revive_seconds() -> float:
        return dice.uniform(1.0, 15.0) * dice.choice([1, 1, 1, 1, 1, -1, math.inf])

    def strike(world: World, kind: str, index: int) -> None:
        engine, loop = world.engines[index], asyncio.get_running_loop()
        life = engine.life
        # Long after, somebody who had a call in that life learns that it failed.
        loop.call_later(dice.uniform(0.0, 120.0), lambda: engine.stop("old news", life=life) if not engine.alive else 0)
        match kind:
            case "die":
                engine.die()
            case "hang":
                engine.hang()
            case "slow":
                engine.faulty.add(life)
                slow.add((index, life))
                loop.call_later(50.0, slow.discard, (index, life))

    async def main() -> Played:
        engines.extend(
            FakeEngine(i, latency=latency(i), fault=fault, report_seconds=lambda: dice.uniform(0, plan.report_seconds))
            for i in range(plan.engines)
        )
        world = build(
            batch_size=plan.batch_size,
            max_staleness=plan.max_staleness,
            steps=plan.steps,
            prompt_count=PROMPTS,
            engines=engines,
            scorer=FakeScorer(fault=score_fault, pattern=filtered(dice.choice([0.0, 0.4]), seed=seed)),
            train_seconds=lambda: dice.uniform(0.2, 3.0),
            send_seconds=lambda: dice.choice([0.0, 0.3]),
            deliver_seconds=lambda: dice.uniform(0.0, 2.0),
            late_seconds=25.0,
            generate_timeout=60.0,
            revive_seconds=revive_seconds,
            max_restarts=plan.max_restarts,
            health=HealthLimits(answer=15.0),
            save_steps=dice.choice([-1, 2]),
            cut_late=dice.random() < 0.2,
            seed=seed,
        )
        loop, stop = asyncio.get_running_loop(), StopRequest(grace=30.0)
        for when, kind, index in plan.faults:
            loop.call_at(when, strike, world, kind, index)
        for when in plan.stops:
            loop.call_at(when, stop.ask)
        for when in plan.saves:
            loop.call_at(when, stop.ask_to_save)
        played = Played(plan=plan, world=world, seed=seed)
        try:
            async with asyncio.timeout(LATEST):
                played.outcome = await world.run(stop)
        except (EngineUnusable, ExceptionGroup) as error:
            played.error = first(error)
        left_over = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left_over, f"tasks outlived the run: {left_over}"
        return played

    return run_virtual(main())


def first(error: BaseException) -> BaseException:
    return first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def check(played: Played) -> None:
    """What holds of every run, whatever happened to it."""
    world, plan = played.world, played.plan
    slots = (plan.max_staleness + 1) * plan.batch_size
    fates(world, batch_size=plan.batch_size, slots=slots)  # each group ended once, for a reason
    check_prompts(world, permanent=lambda reason: reason in PERMANENT, prompt_count=PROMPTS, seed=played.seed)
    trained = [group.prompt.id for batch in world.trainer.batches for group in batch.groups]
    assert len(set(trained)) == len(trained), "trained twice"
    assert all(age <= plan.max_staleness for batch in world.trainer.batches for age in batch.ages)
    live = [event.version for _, event in world.of(PublicationLive)]
    assert live == [*range(1, len(live) + 1)]
    dropped = {event.prompt: event.reason for _, event in world.of(PromptDropped)}
    assert not dropped.keys() & set(trained)
    failures = Counter(world.prompt_of(event.group) for _, event in world.of(GroupFailed))
    for prompt in dropped.keys() - plan.bad - plan.killers:  # by chance in every engine that died
        assert dropped[prompt] in (FAILS, KILLS_ENGINES) and failures[prompt] >= 3
    assert not any(engine.running for engine in world.engines)
    check_engines(played)
    check_end(played)


def check_engines(played: Played) -> None:
    """Each fault costs one restart, and no engine is given up before its restarts are spent."""
    world, plan = played.world, played.plan
    no_refunds = KILLS_ENGINES not in {event.reason for _, event in world.of(PromptDropped)}
    lost: Counter[int] = Counter()
    given_up: set[int] = set()
    for when, event in world.events:
        match event:
            case EngineLost():
                lost[event.engine] += 1
            case EngineReplaced():
                assert event.times <= min(lost[event.engine], plan.max_restarts)
                assert event.times == lost[event.engine] or not no_refunds, "a fault costs one restart"
            case EngineGivenUp():
                assert lost[event.engine] == plan.max_restarts + 1 or not no_refunds
                assert lost[event.engine] > plan.max_restarts
                given_up.add(event.engine)
                assert event.left == plan.engines - len(given_up)
                late = [group for group in world.engines[event.engine].made if group.started > when]
                assert not late, "it is used after it was given up"
    for engine in world.engines:
        assert lost[engine.index] <= len(engine.faulty), f"engine {engine.index} lost {lost} times, {engine.faulty}"


def check_end(played: Played) -> None:
    """It is done, or was stopped, or has no engine left; what it has trained is kept."""
    world, plan, outcome = played.world, played.plan, played.world.pipeline.outcome
    done = len(world.trainer.batches)
    gone = len(world.of(EngineGivenUp)) == plan.engines
    assert isinstance(played.error, EngineUnusable) == (gone and played.error is not None)
    if played.error is not None:
        assert gone, repr(played.error)
        assert "--resume" in str(played.error) or outcome.model_saved
    else:
        assert done == plan.steps or plan.stops
    if done and not outcome.model_saved and len(plan.stops) < 2:  # asked twice it ends at once
        (*_, state) = world.checkpoints.states
        assert state.step == done
    for _, event in world.of(Checkpointed):
        assert event.step <= done


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_whatever_happens_nothing_is_lost_or_trained_twice(chunk: int) -> None:
    for seed in range(chunk, SCHEDULES, CHUNKS):
        try:
            check(play(seed))
        except BaseException as error:
            raise AssertionError(f"seed {seed} ({Plan.of(random.Random(seed))}): {first(error)!r}") from error
