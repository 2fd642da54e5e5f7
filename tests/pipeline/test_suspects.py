"""Prompts that engines fail or die on are found out and dropped; their company is not, and no engine is lost to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes import DEADLY, FakeEngine, World, build

from dapo_openrlhf.pipeline.engine_pool import EngineUnusable
from dapo_openrlhf.pipeline.evaluator import EvaluationFailed
from dapo_openrlhf.pipeline.events import BatchTaken, Checkpointed, EngineLost, Event, GroupFailed, PromptDropped
from dapo_openrlhf.pipeline.ports import ENGINE_DIED, GroupError, PromptFault
from dapo_openrlhf.pipeline.prompts import NoPromptsLeft
from dapo_openrlhf.pipeline.suspects import DEATHS, FAILS, FAILURES, KILLS_ENGINES
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Prompt

Fault = Callable[[Prompt], GroupError | float | None]


def ran(fault: Fault, *, engines: int = 1, **settings: object) -> World:
    """A whole run whose engines do with each group what ``fault`` says."""

    async def main() -> World:
        made = [FakeEngine(index, latency=lambda: 4.0, fault=fault) for index in range(engines)]
        world = build(engines=made, revive_seconds=lambda: 10.0, **{"batch_size": 4, "steps": 4, **settings})
        await world.run()
        return world

    return run_virtual(main())


def failed_run(fault: Fault, **settings: object) -> BaseException:
    with pytest.raises((ExceptionGroup, EngineUnusable)) as raised:
        ran(fault, **settings)
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def kills(*prompts: int) -> Fault:
    return lambda prompt: DEADLY if prompt.id in prompts else None


def dropped(world: World) -> dict[int, str]:
    return {event.prompt: event.reason for _, event in world.of(PromptDropped)}


def first_prompts(count: int) -> list[int]:
    """The prompts that a run begins with."""
    world = ran(lambda prompt: None)
    return [group.prompt.id for group in world.engines[0].made][:count]


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 3, 7, 11])
def test_a_prompt_that_kills_its_engine_is_dropped_and_no_other_one(engines: int, place: int) -> None:
    killer = first_prompts(12)[place]
    world = ran(kills(killer), engines=engines, steps=12)
    assert dropped(world) == {killer: KILLS_ENGINES}
    assert f"prompt {killer} is dropped: engines died under it" in world.of(PromptDropped)[0][1].message
    assert len(world.of(EngineLost)) <= DEATHS + 2
    assert len(world.of(BatchTaken)) == 12
    assert killer in world.rollouts.prompt_state().dropped
    counters = world.queue.counters()  # they balance
    assert counters["failed"][KILLS_ENGINES] == 1


def test_engine_restarts_are_not_used_up_by_prompts() -> None:
    """Five killers, each of which costs three deaths; an engine may be replaced three times."""
    killers = first_prompts(40)[::8]
    world = ran(kills(*killers), steps=12, max_restarts=3)
    assert dropped(world) == dict.fromkeys(killers, KILLS_ENGINES)
    assert len(world.of(EngineLost)) > 3


def test_several_killers_in_flight_at_once_are_all_found_and_nobody_else() -> None:
    killers = first_prompts(8)[1:4]
    world = ran(kills(*killers), max_restarts=8, steps=8)
    assert dropped(world) == dict.fromkeys(killers, KILLS_ENGINES)


def test_a_prompt_that_kills_late_is_found_too() -> None:
    """Its first token is no danger, so it must run alone to its end."""
    killer = first_prompts(1)[0]
    engine: list[FakeEngine] = []

    def fault(prompt: Prompt) -> float | None:
        whole = any(group.prompt == prompt and "probe" not in name for name, group in engine[0].named.items())
        return DEADLY if prompt.id == killer and whole else None

    async def main() -> World:
        engine.append(FakeEngine(0, latency=lambda: 4.0, fault=fault))
        world = build(engines=engine, revive_seconds=lambda: 10.0, batch_size=4, steps=4, max_restarts=3)
        await world.run()
        return world

    assert dropped(run_virtual(main())) == {killer: KILLS_ENGINES}


def test_an_engine_that_dies_of_everything_convicts_nobody_and_ends_the_run() -> None:
    error = failed_run(lambda prompt: DEADLY, max_restarts=3)
    assert isinstance(error, EngineUnusable)
    assert "after 3 replacements" in str(error)


def test_an_engine_that_dies_of_everything_after_a_while_convicts_nobody() -> None:
    """A proof by a prompt that was done before comes first; it fails, and so does the engine."""
    left = [30]
    said: list[Event] = []

    def fault(prompt: Prompt) -> float | None:
        left[0] -= 1
        return None if left[0] > 0 else DEADLY

    async def main() -> None:
        engine = FakeEngine(0, latency=lambda: 4.0, fault=fault)
        world = build(engines=[engine], revive_seconds=lambda: 10.0, batch_size=4, steps=40, max_restarts=3)
        world.log.listen(said.append)
        await world.run()

    with pytest.raises(EngineUnusable):
        run_virtual(main())
    assert not [event for event in said if isinstance(event, PromptDropped)]


def test_a_prompt_that_only_fails_is_dropped_and_its_engine_kept() -> None:
    bad = first_prompts(1)[0]
    world = ran(lambda prompt: GroupError("engine_error", "engine 0: bad shape") if prompt.id == bad else None)
    assert dropped(world) == {bad: FAILS}
    assert "bad shape" in world.of(PromptDropped)[0][1].message
    assert [event.reason for _, event in world.of(GroupFailed)] == ["engine_error"] * (FAILURES - 1) + [FAILS]
    assert world.of(EngineLost) == []


def test_many_prompts_with_faults_of_their_own_cost_no_engine() -> None:
    bad = set(first_prompts(40)[::2])
    fault = PromptFault("prompt_token_unknown", "token ids [19]")
    world = ran(lambda prompt: fault if prompt.id in bad else None, steps=8)
    assert set(dropped(world)) == {group.prompt.id for group in world.engines[0].made} & bad
    assert len(dropped(world)) > 8
    assert world.of(EngineLost) == []


def test_a_dropped_prompt_comes_no_more_in_later_episodes_and_after_a_resume() -> None:
    fault = PromptFault("prompt_empty", "no tokens")
    settings = {"prompt_count": 10, "steps": 6, "save_steps": 3, "batch_size": 4}
    times: list[int] = []

    def bad(prompt: Prompt) -> GroupError | None:
        times.extend([prompt.id] if prompt.id == 4 else [])
        return fault if prompt.id == 4 else None

    world = ran(bad, **settings)
    assert times == [4]
    assert len([event for _, event in world.of(Checkpointed) if event.path != "model"]) == 2
    state = world.checkpoints.states[0]
    assert state.prompts.dropped == (4,)
    again = ran(kills(4), **settings, state=state)
    assert again.of(EngineLost) == []


def test_a_run_whose_prompts_are_all_dropped_says_so() -> None:
    error = failed_run(lambda prompt: PromptFault("prompt_empty", "no tokens"), prompt_count=3)
    assert isinstance(error, NoPromptsLeft)
    assert "all 3 prompts of data.prompt_dataset are dropped: 3 prompt_empty" in str(error)


def test_a_problem_that_kills_engines_is_an_error_of_its_own_and_every_other_one_is_judged() -> None:
    from fakes import EVALUATION

    measured = []

    async def main() -> World:
        engine = FakeEngine(0, latency=lambda: 4.0, fault=kills(EVALUATION + 2))
        world = build(
            engines=[engine],
            revive_seconds=lambda: 10.0,
            steps=4,
            problem_count=6,
            eval_steps=1,
            max_restarts=3,
            on_evaluation=lambda step, evaluation: measured.append(evaluation),
        )
        await world.run()
        return world

    world = run_virtual(main())
    assert [evaluation.errors for evaluation in measured] == [2] * 5  # two samples of one problem
    assert all(KILLS_ENGINES in evaluation.results[2].responses[0].error for evaluation in measured)
    assert len(world.of(EngineLost)) <= DEATHS + 2, "it is remembered over evaluations"
    assert dropped(world) == {}
    assert {event.reason for _, event in world.of(GroupFailed)} <= {ENGINE_DIED}


def test_an_evaluation_of_killers_only_fails() -> None:
    async def main() -> None:
        world = build(
            engines=[FakeEngine(fault=lambda prompt: DEADLY if prompt.id >= 1_000_000 else None)],
            revive_seconds=lambda: 1.0,
            steps=1,
            problem_count=2,
            max_restarts=100,
        )
        await world.run()

    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(main())
    assert raised.group_contains(EvaluationFailed)


def test_a_one_off_death_costs_nobody_anything() -> None:
    async def main() -> World:
        engines = [FakeEngine(index, latency=lambda: 4.0) for index in range(2)]
        world = build(engines=engines, revive_seconds=lambda: 10.0, batch_size=4, steps=8)
        asyncio.get_running_loop().call_later(6.0, engines[0].die)
        await world.run()
        return world

    world = run_virtual(main())
    assert dropped(world) == {}
    assert world.queue.counters()["failed"] == {ENGINE_DIED: len(world.of(GroupFailed))}
