"""The engine pool: a dead engine is replaced, and nothing is lost with it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from fakes import HANG, FakeEngine, FakeGroup, FakeScorer, World, build, check_prompts

from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.engine_life import SICK
from dapo_openrlhf.pipeline.engine_pool import EngineUnusable
from dapo_openrlhf.pipeline.evaluator import EvaluationFailed
from dapo_openrlhf.pipeline.events import BatchTaken, EngineGivenUp, EngineLost, EngineReplaced, GroupFailed
from dapo_openrlhf.pipeline.ports import CUT_TOO_EARLY, GroupError
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.plan.virtual_time import run_virtual


def run_with_deaths(make: Callable[[], World], *deaths: tuple[float, int]) -> World:
    """A whole run in which engine ``index`` dies at each ``(seconds, index)``."""

    async def kill(world: World, seconds: float, index: int) -> None:
        await asyncio.sleep(seconds)
        world.engines[index].die()

    async def main() -> World:
        world = make()
        killers = [asyncio.create_task(kill(world, *death)) for death in deaths]
        await world.run()
        await asyncio.gather(*killers)
        return world

    return run_virtual(main())


def two_engines(latency: float = 4.0, **settings: object) -> World:
    engines = [FakeEngine(index, latency=lambda: latency) for index in range(2)]
    return build(batch_size=4, engines=engines, revive_seconds=lambda: 10.0, **settings)


def test_a_dead_engine_is_replaced_and_its_prompts_are_generated_again() -> None:
    world = run_with_deaths(lambda: two_engines(steps=8), (6.0, 1))
    ((lost_at, lost),) = world.of(EngineLost)
    ((back_at, back),) = world.of(EngineReplaced)
    assert (lost.engine, lost.message, lost_at) == (1, "engine 1 died", 6.0)
    assert (back.engine, back.times, back_at) == (1, 1, 16.0)
    assert {event.reason for _, event in world.of(GroupFailed)} == {"engine_died"}
    check_prompts(world, permanent=lambda reason: False, prompt_count=1000, seed=0)


def test_the_other_engine_goes_on_meanwhile_and_gets_new_weights() -> None:
    world = run_with_deaths(lambda: two_engines(steps=8, deliver_seconds=lambda: 1.0), (6.0, 1))
    during = [group for group in world.engines[0].made if 6.0 < group.started < 16.0]
    assert len({group.oldest_version for group in during}) > 1
    assert [time for time, _ in world.of(BatchTaken) if 6.0 < time < 16.0]


def test_a_replaced_engine_has_the_newest_weights() -> None:
    world = run_with_deaths(lambda: two_engines(steps=8), (6.0, 1))
    late = [group for group in world.engines[1].made if group.started >= 16.0]
    after = min(group.oldest_version for group in late if group.oldest_version >= 0)  # it had its first token
    assert after >= max(group.oldest_version for group in world.engines[0].made if group.ended <= 16.0)


def test_groups_wait_while_no_engine_is_up() -> None:
    world = run_with_deaths(lambda: two_engines(steps=4), (6.0, 0), (6.0, 1))
    assert not [g for engine in world.engines for g in engine.made if 6.0 < g.started < 16.0]
    assert len(world.of(EngineReplaced)) == 2


def test_an_engine_that_only_fails_is_replaced() -> None:
    """It has the fewest groups in flight at any time, and so draws most of them."""
    broken = [True]

    def fault(prompt: object) -> GroupError | None:
        return GroupError("engine_error", "illegal memory access") if broken[0] else None

    def make() -> World:
        engines = [FakeEngine(0, latency=lambda: 4.0), FakeEngine(1, latency=lambda: 0.1, fault=fault)]
        return build(
            batch_size=4, steps=4, engines=engines, revive_seconds=lambda: broken.clear() or broken.append(False) or 1.0
        )

    world = run_with_deaths(make)
    ((_, lost),) = world.of(EngineLost)
    assert (lost.engine, lost.message) == (1, "illegal memory access")
    assert len(world.of(GroupFailed)) <= SICK + 8


@pytest.mark.parametrize("after", [1, SICK - 1])
def test_a_new_engine_is_as_patient_as_the_old_one(after: int) -> None:
    """The first is replaced for ``SICK`` failures in a row; the new one has ``after`` and is kept."""
    broken, failures = [True], ["illegal memory access"] * after

    def fault(prompt: object) -> GroupError | None:
        return GroupError("engine_error", failures.pop() if not broken else "") if broken or failures else None

    world = run_with_deaths(
        lambda: build(
            batch_size=16, steps=3, engines=[FakeEngine(fault=fault)], revive_seconds=lambda: broken.clear() or 5.0
        )
    )
    assert len(world.of(EngineLost)) == 1
    assert not failures


def test_failures_with_a_group_done_in_between_make_no_engine_sick() -> None:
    turns = itertools.cycle([*["broken"] * (SICK // 2 - 1), None])

    def fault(prompt: object) -> GroupError | None:
        return GroupError("engine_error", message) if (message := next(turns)) else None

    world = run_with_deaths(
        lambda: build(batch_size=4, steps=4, engines=[FakeEngine(fault=fault)], revive_seconds=lambda: 5.0)
    )
    assert len(world.of(GroupFailed)) > 2 * SICK
    assert world.of(EngineLost) == []


def test_prompts_that_are_at_fault_make_no_engine_sick() -> None:
    too_long = [GroupError("prompt_too_long", "9000 tokens", permanent=True)] * (2 * SICK)
    engine = FakeEngine(fault=lambda prompt: too_long.pop() if too_long else None)
    world = run_with_deaths(lambda: build(batch_size=16, steps=2, engines=[engine], revive_seconds=lambda: 5.0))
    assert len(world.of(GroupFailed)) == 2 * SICK
    assert world.of(EngineLost) == []


def test_an_engine_on_which_nothing_is_done_for_a_whole_timeout_hangs_and_is_replaced() -> None:
    """Engine 1 hangs from its third group on; that one group of engine 0 takes for ever is no such sign."""
    slow = itertools.chain([4.0, HANG], itertools.repeat(4.0))
    well, hanging = itertools.repeat(4.0, 2), [HANG]

    def make() -> World:
        engines = [
            FakeEngine(0, latency=lambda: next(slow)),
            FakeEngine(1, latency=lambda: next(well, (*hanging, 4.0)[0])),
        ]
        return build(
            batch_size=2,
            max_staleness=3,
            steps=20,
            engines=engines,
            revive_seconds=lambda: hanging.clear() or 10.0,
            generate_timeout=60.0,
        )

    world = run_with_deaths(make)
    ((lost_at, lost),) = world.of(EngineLost)
    assert lost.engine == 1
    assert 60.0 < lost_at < 70.0
    assert "did not finish prompt" in lost.message
    assert len([event for _, event in world.of(GroupFailed) if event.message.startswith("engine 0")]) == 1


def test_cuts_that_come_too_early_do_not_make_an_engine_sick() -> None:
    cuts = [GroupError(CUT_TOO_EARLY, "no token yet")] * (2 * SICK)
    engine = FakeEngine(fault=lambda prompt: cuts.pop() if cuts else None)
    world = run_with_deaths(lambda: build(batch_size=16, steps=3, engines=[engine], revive_seconds=lambda: 10.0))
    assert len(world.of(GroupFailed)) == 2 * SICK
    assert world.of(EngineLost) == []


def test_an_engine_may_die_as_often_as_is_allowed_though_no_group_is_done_in_between() -> None:
    world = run_with_deaths(
        lambda: build(
            batch_size=4, steps=2, engines=[FakeEngine(latency=lambda: 4.0)], revive_seconds=lambda: 1.0, max_restarts=3
        ),
        (1.0, 0),
        (3.0, 0),
        (5.0, 0),
    )
    # 8 groups each of the first two times; then they are suspects, of which one alone is in the engine.
    assert world.queue.counters()["failed"] == {"engine_died": 17}


@pytest.mark.parametrize("failures", [2, 3])
def test_a_new_engine_that_does_not_start_counts_as_a_replacement_and_is_tried_again(failures: int) -> None:
    seconds = itertools.chain([HANG] * failures, [10.0])

    def make() -> World:
        engines = [FakeEngine(0, latency=lambda: 4.0), FakeEngine(1, latency=lambda: 4.0)]
        return build(batch_size=4, steps=8, engines=engines, revive_seconds=lambda: next(seconds), max_restarts=3)

    if failures == 3:
        world = run_with_deaths(make, (6.0, 1))
        ((_, event),) = world.of(EngineGivenUp)
        assert (event.engine, event.left) == (1, 1)
        assert (
            event.message
            == "engine 1 failed after 3 replacements within an hour (vllm.max_restarts): engine 1 did not start"
        )
        assert len(world.of(BatchTaken)) == 8, "it goes on with the other one"
        return
    world = run_with_deaths(make, (6.0, 1))
    assert [event.times for _, event in world.of(EngineReplaced)] == [3]
    assert [event.message for _, event in world.of(EngineLost)] == ["engine 1 died", *["engine 1 did not start"] * 2]


def test_an_engine_that_was_given_up_is_used_again_an_hour_after_its_losses() -> None:
    """It is lost at 6 and at 17 s, and may be replaced once within an hour; a new engine takes 10 s."""
    world = run_with_deaths(
        lambda: two_engines(40.0, steps=200, max_restarts=1), (6.0, 1), (17.0, 1), (3700.0, 1), (3711.5, 1)
    )
    replaced = [(time, event.times) for time, event in world.of(EngineReplaced)]
    assert replaced == [(16.0, 1), (3616.0, 1), (3710.0, 1)]
    (first, _), (second, _) = world.of(EngineGivenUp)  # when a group of it, of 40 s, has failed
    assert 17.0 <= first < 60.0 and 3711.5 <= second < 3760.0
    assert not [group for group in world.engines[1].made if first < group.started < 3616.0]
    assert [group for group in world.engines[1].made if 3616.0 < group.started < 3700.0]


def test_an_engine_that_may_not_be_replaced_stays_out() -> None:
    world = run_with_deaths(lambda: two_engines(40.0, steps=200, max_restarts=0), (6.0, 1))
    assert world.of(EngineReplaced) == []
    assert [time for time, _ in world.of(EngineGivenUp)] == [6.0]
    assert world.of(BatchTaken)[-1][0] > 3700.0


def test_restarts_of_an_earlier_life_of_the_run_count() -> None:
    """A new trainer comes with a new pool over the same engines."""
    restarts = [RestartBudget(2), RestartBudget(2)]
    for life in (-2, -1):
        restarts[1].charge(life, 0.0)
    world = run_with_deaths(lambda: two_engines(steps=8, restarts=restarts), (6.0, 1), (7.0, 0))
    assert [(event.engine, event.times) for _, event in world.of(EngineReplaced)] == [(0, 1)]
    assert [event.engine for _, event in world.of(EngineGivenUp)] == [1]


def test_a_loss_counts_once_and_for_an_hour() -> None:
    restarts = RestartBudget(1)
    assert (restarts.count(5.0), restarts.seconds_left(5.0)) == (0, 0.0)
    assert [restarts.charge(life, now) for life, now in ((0, 10.0), (0, 20.0), (1, 100.0))] == [1, 1, 2]
    assert restarts.seconds_left(100.0) == 3510.0
    restarts.refund(1)
    assert (restarts.count(100.0), restarts.seconds_left(100.0)) == (1, 0.0)
    assert restarts.count(3610.0) == 0


def test_a_run_whose_engines_are_all_given_up_ends_with_a_checkpoint_and_the_remedy() -> None:
    """Engine 0 is dead from 6 s on for good, engine 1 from 30 s; 40 s do not suffice for all steps."""
    worlds: list[World] = []

    def make() -> World:
        worlds.append(two_engines(steps=80, max_restarts=1))
        return worlds[0]

    with pytest.raises(EngineUnusable) as raised:
        run_with_deaths(make, (6.0, 0), (17.0, 0), (19.0, 1), (30.5, 1))
    (world,) = worlds
    assert [(event.engine, event.left) for _, event in world.of(EngineGivenUp)] == [(0, 1), (1, 0)]
    assert "engine 1 failed after 1 replacements within an hour (vllm.max_restarts): engine 1 died" in str(raised.value)
    (state,) = world.checkpoints.states
    assert state.step == len(world.trainer.batches) > 0
    assert str(raised.value).endswith(
        f"{state.step} steps of this run are kept in checkpoint-{state.step}; --resume goes on from it"
    )


@pytest.mark.parametrize("dies", ["with the rollouts", "in the evaluation"])
def test_an_engine_that_is_lost_at_the_end_is_replaced_for_the_final_evaluation(dies: str) -> None:
    """The last step ends 0.1 s before it; an answer takes 4 s, a new engine 10 s."""

    async def main() -> tuple[Outcome, World]:
        loop = asyncio.get_running_loop()

        def step_done(step: int) -> None:
            if step == 1:
                loop.call_later(0.0 if dies == "with the rollouts" else 2.0, engine.die)

        engine = FakeEngine(latency=lambda: 4.0)
        world = build(
            steps=2, engines=[engine], revive_seconds=lambda: 10.0, problem_count=3, save_steps=5, on_step=step_done
        )
        return await world.run(), world

    outcome, world = run_virtual(main())
    assert len(world.of(EngineReplaced)) == 1
    assert outcome.accuracy_after == 0.5
    assert world.trainer.saved[-1] == (2, "model")


def test_a_model_is_saved_though_its_evaluation_fails() -> None:
    worlds: list[World] = []

    async def main() -> None:
        def fault(group: FakeGroup) -> GroupError | None:
            last = worlds and worlds[0].trainer.version == 2
            return GroupError("reward_error", "no") if last and not group.for_training else None

        worlds.append(build(steps=2, problem_count=3, scorer=FakeScorer(fault=fault)))
        await worlds[0].run()

    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(main())
    assert raised.group_contains(EvaluationFailed)
    assert worlds[0].trainer.saved == [(2, "model")]


def test_a_group_that_no_engine_has_yet_can_be_cut_without_harm() -> None:
    async def main() -> None:
        world = two_engines()
        world.rollouts._sampler.engines.cut("group 5")

    run_virtual(main())
