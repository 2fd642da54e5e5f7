"""The rollout loop and the engine pool."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

import pytest
from fakes import (
    HANG,
    FakeEngine,
    FakeGroup,
    FakeScorer,
    World,
    all_right,
    build,
    check_prompts,
    mixed,
    prompts,
)

from dapo_openrlhf.pipeline.engine_pool import EnginePool
from dapo_openrlhf.pipeline.events import GroupDispatched, GroupFailed, GroupGenerated, GroupJudged
from dapo_openrlhf.pipeline.ports import GroupError, Sampling
from dapo_openrlhf.pipeline.rollout import LengthShaping
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, RolloutGroup, Score, TrainBatch

SAMPLING = Sampling(n=2, max_new_tokens=100, temperature=1.0, top_p=1.0)


def roll(seconds: float, make: Callable[[], World]) -> World:
    """Run the rollout loop alone, with no trainer, for a while; then cancel it."""

    async def main() -> World:
        world = make()
        loop = asyncio.create_task(world.rollouts.run())
        await asyncio.sleep(seconds)
        assert not loop.done(), loop.exception()
        loop.cancel()
        await asyncio.wait([loop])
        assert loop.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "groups outlive the loop"
        return world

    return run_virtual(main())


def latencies(*seconds: float) -> Callable[[], float]:
    """In order of dispatch; the last for ever."""
    left = itertools.chain(seconds, itertools.repeat(seconds[-1]))
    return lambda: next(left)


def names(world: World, group: int) -> list[str]:
    return [type(event).__name__ for _, event in world.events if getattr(event, "group", None) == group]


def test_every_slot_is_used_and_no_more() -> None:
    engine = FakeEngine(latency=lambda: 100.0)
    world = roll(5.0, lambda: build(batch_size=3, max_staleness=2, engines=[engine]))
    assert [time for time, _ in world.of(GroupDispatched)] == [0.0] * 9
    assert world.queue.free_slots == 0


def test_each_group_goes_to_the_engine_with_the_fewest() -> None:
    engines = [
        FakeEngine(0, latency=latencies(100.0)),
        FakeEngine(1, latency=latencies(100.0)),
        FakeEngine(2),
    ]
    roll(
        2.5,
        lambda: build(batch_size=6, max_staleness=0, engines=engines, scorer=FakeScorer(pattern=all_right)),
    )
    assert [len(engine.made) for engine in engines] == [2, 2, 6]


def test_a_group_is_dispatched_generated_and_judged() -> None:
    world = roll(
        1.9,
        lambda: build(
            batch_size=1,
            max_staleness=0,
            engines=[FakeEngine(latency=lambda: 1.0)],
            scorer=FakeScorer(latency=lambda: 0.25),
        ),
    )
    (made,) = world.engines[0].made
    tokens = sum(made.lengths)
    assert [event for _, event in world.events] == [
        GroupDispatched(group=0, prompt=made.prompt.id, version=PolicyVersion(0), deadline=0),
        GroupGenerated(
            group=0,
            engine=0,
            seconds=1.0,
            response_tokens=tokens,
            responses=2,
            truncated=0,
            oldest_version=PolicyVersion(0),
            newest_version=PolicyVersion(0),
            prompt_tokens=3,
            lengths=made.lengths,
        ),
        GroupJudged(
            group=0,
            keep=True,
            reason="kept",
            accuracy=0.5,
            reward=sum(shaped(made)) / 2,
            response_tokens=tokens,
            seconds=0.25,
        ),
    ]


def shaped(made: FakeGroup) -> list[float]:
    """Rewards of a mixed group after eq. 13 with L_max = 100 and L_cache = 20."""
    return [
        (1.0 if right else -1.0) - max(0.0, (length - 80) / 20)
        for right, length in zip(mixed(made), made.lengths, strict=True)
    ]


def test_what_the_engine_and_the_scorer_said_is_in_the_group_that_is_trained() -> None:
    """Lengths, truncation, versions and handles are not mixed up on the way."""
    seen: list[tuple[RolloutGroup, int]] = []

    def look(batch: TrainBatch) -> None:
        seen.extend((group, batch.version) for group in batch.groups)

    async def main() -> None:
        await build(
            batch_size=4,
            samples=8,
            steps=3,
            engines=[FakeEngine(index, samples=8, max_length=100, latency=lambda: 1.5) for index in range(2)],
            deliver_seconds=lambda: 0.7,
            work=look,
        ).run()

    run_virtual(main())
    newer = 0
    for group, _ in seen:
        made = group.tokens
        assert isinstance(made, FakeGroup)
        assert (group.prompt, group.engine, group.prompt_length) == (made.prompt, made.engine, 3)
        assert (group.oldest_version, group.newest_version) == (made.oldest_version, made.newest_version)
        assert tuple(rollout.length for rollout in group.rollouts) == made.lengths
        assert [rollout.truncated for rollout in group.rollouts] == [length == 100 for length in made.lengths]
        assert tuple(rollout.correct for rollout in group.rollouts) == mixed(made)
        assert [rollout.reward for rollout in group.rollouts] == pytest.approx(shaped(made))
        newer += group.newest_version > group.oldest_version
    assert newer, "no group saw weights change while it was generated"


def test_the_filter_looks_at_answers_and_not_at_shaped_rewards() -> None:
    """All right with different lengths: rewards differ, and the group would teach length only."""
    world = roll(1.5, lambda: build(batch_size=8, max_staleness=0, scorer=FakeScorer(pattern=all_right)))
    judged = [event for _, event in world.of(GroupJudged)]
    assert any(event.reward < 1.0 for event in judged)
    assert all((event.keep, event.reason, event.accuracy) == (False, "all_right", 1.0) for event in judged)


@pytest.mark.parametrize("length", [1, 80, 81, 90, 100])
def test_length_shaping_adds_eq_13_to_the_reward(length: int) -> None:
    shaping = LengthShaping(max_length=100, buffer_length=20, factor=0.5)
    rollout = shaping.shape(Score(correct=True, reward=1.0), length, truncated=length == 100, cut=False)
    assert rollout.reward == pytest.approx(1.0 - 0.5 * max(0, length - 80) / 20)
    assert (rollout.length, rollout.correct, rollout.truncated) == (length, True, length == 100)


# ---------------------------------------------------------------- failures


def only_second(error: GroupError) -> Callable[[Prompt], GroupError | None]:
    faults = iter([None, error])
    return lambda prompt: next(faults, None)


def prompt_order(world: World) -> list[int]:
    return [event.prompt for _, event in world.of(GroupDispatched)]


def test_a_failed_groups_prompt_is_the_next_to_be_generated() -> None:
    world = roll(
        9.0,
        lambda: build(
            batch_size=4,
            max_staleness=0,
            engines=[
                FakeEngine(
                    latency=latencies(2.0, 1.0, 3.0, 4.0, 5.0),
                    fault=only_second(GroupError("engine_error", "broken")),
                )
            ],
        ),
    )
    assert names(world, 1) == ["GroupDispatched", "GroupFailed"]
    assert world.of(GroupFailed) == [(1.0, GroupFailed(group=1, reason="engine_error", message="broken"))]
    order = prompt_order(world)
    assert len(order) == 5
    assert order[4] == order[1]


def test_a_prompt_that_fails_for_good_is_not_tried_again() -> None:
    error = GroupError("prompt_too_long", "5000 tokens", permanent=True)
    engine = FakeEngine(fault=only_second(error))
    world = roll(9.0, lambda: build(batch_size=4, max_staleness=0, engines=[engine]))
    order = prompt_order(world)
    assert len(order) == len(set(order)) == 5
    assert world.queue.counters()["failed"] == {"prompt_too_long": 1}


def test_a_scorers_error_fails_the_group_and_keeps_its_prompt() -> None:
    faults = iter([GroupError("reward_timeout", "60 s")])
    scorer = FakeScorer(fault=lambda group: next(faults, None))
    world = roll(9.0, lambda: build(batch_size=2, max_staleness=0, scorer=scorer))
    assert names(world, 0) == ["GroupDispatched", "GroupGenerated", "GroupFailed"]
    check_prompts(world, permanent=lambda reason: False, prompt_count=1000, seed=0)
    assert prompt_order(world)[2] == prompt_order(world)[0]


def test_a_group_that_hangs_is_cancelled_in_the_engine_and_named() -> None:
    world = roll(
        31.0,
        lambda: build(
            batch_size=1,
            max_staleness=0,
            engines=[FakeEngine(latency=latencies(HANG, 5.0))],
            generate_timeout=30.0,
        ),
    )
    hung, again = world.engines[0].made
    assert (hung.end, hung.ended, again.started) == ("cancelled", 30.0, 30.0)
    assert hung.prompt == again.prompt
    ((time, failed),) = world.of(GroupFailed)
    assert time == 30.0
    assert failed == GroupFailed(
        group=0,
        reason="generate_timeout",
        message=f"engine 0 did not finish prompt {hung.prompt.id} within 30 s",
    )


def test_the_timeout_counts_generation_only() -> None:
    world = roll(
        60.0,
        lambda: build(
            batch_size=1,
            max_staleness=0,
            engines=[FakeEngine(latency=lambda: 29.0)],
            scorer=FakeScorer(latency=lambda: 20.0),
            generate_timeout=30.0,
        ),
    )
    assert world.of(GroupFailed) == []


def test_the_pool_forgets_groups_that_failed_or_were_cancelled() -> None:
    async def main() -> list[int]:
        engines = [
            FakeEngine(0, latency=lambda: HANG),
            FakeEngine(1, fault=lambda prompt: GroupError("engine_error", "broken")),
            FakeEngine(2, latency=lambda: 9.0),
        ]
        pool = EnginePool(engines)
        chosen = []
        for prompt in prompts(3):
            chosen.append(pool.least_loaded())
            task = asyncio.create_task(pool.generate(f"request {prompt.id}", prompt, SAMPLING, 5.0))
            await asyncio.sleep(0.01)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            if chosen[-1] == 2:
                task.cancel()
        await asyncio.sleep(6.0)
        assert not any(engine.running for engine in engines)
        return [*chosen, pool.least_loaded()]

    assert run_virtual(main()) == [0, 1, 2, 0]


class ScorerThatForgets(FakeScorer):
    """One score short."""

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        return (await super().score(texts, prompt))[1:]


class EngineWithADefect(FakeEngine):
    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        raise ZeroDivisionError("a defect")


@pytest.mark.parametrize(
    ("engines", "scorer", "error"),
    [
        ([FakeEngine()], ScorerThatForgets(), ValueError),
        ([EngineWithADefect()], FakeScorer(), ZeroDivisionError),
    ],
)
def test_a_defect_ends_the_loop(
    engines: Sequence[FakeEngine],
    scorer: FakeScorer,
    error: type[Exception],
) -> None:
    async def main() -> None:
        world = build(engines=engines, scorer=scorer)
        async with asyncio.timeout(100.0):
            await world.rollouts.run()

    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(main())
    assert raised.group_contains(error)
