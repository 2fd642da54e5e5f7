"""Engines that hang are found by being asked, told of, and replaced; those that only work long are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeEngine, World, build

from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    EngineAnswers,
    EngineLost,
    EngineReplaced,
    EngineSilent,
    Event,
    GroupDispatched,
    GroupFailed,
)
from dapo_openrlhf.pipeline.health import ASK_SECONDS, TICK_SECONDS, HealthCheck, HealthLimits, Unhealthy
from dapo_openrlhf.pipeline.ports import EngineGone, Health
from dapo_openrlhf.plan.virtual_time import VirtualTimeLoop, run_virtual

LIMITS = HealthLimits(answer=60.0, step=600.0)


class Patient:
    """An engine whose answers are what ``answer`` makes of the time."""

    life = 0

    def __init__(self, answer: Callable[[float], Any]) -> None:
        self._answer = answer
        self.asked = 0

    async def health(self) -> Health:
        self.asked += 1
        answer = self._answer(asyncio.get_running_loop().time())
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = idle()
        if isinstance(answer, Exception):
            raise answer
        return answer


def idle() -> Health:
    return Health(doing="generating", steps_begun=7, steps_ended=7)


def in_step(number: int) -> Health:
    return Health(doing="generating", steps_begun=number, steps_ended=number - 1)


def watched(
    patient: Patient, seconds: float, disturb: Callable[[], None] = lambda: None
) -> tuple[str, float, list[Event]]:
    """What it dies of, when, and what was said in ``seconds`` seconds; "" if it lives."""
    said: list[Event] = []

    async def main() -> tuple[str, float]:
        clock = asyncio.get_running_loop().time
        disturb()
        try:
            async with asyncio.timeout(seconds):
                await HealthCheck(patient, 3, LIMITS, said.append).watch()  # type: ignore[arg-type]
        except Unhealthy as error:
            return str(error), clock()
        except TimeoutError:
            pass
        return "", clock()

    return *run_virtual(main()), said


def test_an_engine_that_answers_is_asked_every_few_seconds_and_nothing_is_said() -> None:
    patient = Patient(lambda now: idle())
    assert watched(patient, 1000.0) == ("", 1000.0, [])
    assert patient.asked == pytest.approx(1000.0 / ASK_SECONDS, abs=1)


def test_a_silent_process_is_told_of_after_ten_seconds_and_hangs_after_sixty() -> None:
    cause, when, said = watched(Patient(lambda now: 1e9), 1000.0)
    assert "engine 3 hangs: its process did not answer within 60 s (vllm.health_timeout)" in cause
    assert when == ASK_SECONDS + 60.0
    assert [event.message for event in said] == [
        "engine 3 has not answered for 10 s (last seen: ready); it is replaced after 60 s (vllm.health_timeout)"
    ]


def test_one_that_answers_late_goes_on_and_that_is_said() -> None:
    cause, _, said = watched(Patient(lambda now: 59.0 if now < 10.0 else idle()), 200.0)
    assert cause == ""
    assert [type(event) for event in said] == [EngineSilent, EngineAnswers]
    assert said[1].seconds == ASK_SECONDS + 59.0


def test_a_dead_process_is_dead_at_once() -> None:
    assert watched(Patient(lambda now: EngineGone("engine 3 died: killed")), 100.0)[:2] == (
        "engine 3 died: killed",
        ASK_SECONDS,
    )


def test_a_step_without_end_is_told_of_after_a_minute_and_hangs_after_ten() -> None:
    cause, when, said = watched(Patient(lambda now: in_step(5 if now > 100.0 else int(now))), 3000.0)
    assert "its process answers, but one step has taken" in cause
    assert 700.0 <= when <= 720.0
    assert [type(event) for event in said] == [EngineSilent]
    assert (
        "has computed one step for 60 s while generating; it is replaced after 600 s (vllm.step_timeout)"
        in said[0].message
    )


@pytest.mark.parametrize(
    "answer",
    [
        lambda now: idle(),  # idle, loading a model, or waiting for a publication
        lambda now: in_step(int(now / 599.0)),  # each of them long
        lambda now: Health(doing="generating", steps_begun=int(now), steps_ended=int(now) - 1),
    ],
)
def test_what_takes_long_but_gets_on_is_left_alone(answer: Callable[[float], Health]) -> None:
    assert watched(Patient(answer), 20_000.0)[0] == ""


def pass_by(loop: VirtualTimeLoop, seconds: float) -> None:
    loop._virtual_clock.now += seconds


@pytest.mark.parametrize("answers", [lambda now: 1e9, lambda now: in_step(5)], ids=["silent", "in a step"])
def test_time_in_which_this_process_stands_still_is_not_counted(answers: Callable[[float], Any]) -> None:
    """As when a scheduler stops all of a job's processes for hours, or the controller is busy for minutes."""

    def stand_still() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        for start in range(20, 40, 2):
            loop.call_at(start + 0.5, pass_by, loop, 1000.0)

    cause, when, _ = watched(Patient(answers), 50_000.0, stand_still)
    quiet = watched(Patient(answers), 50_000.0)[1]
    assert cause
    assert 10 * 1000.0 < when - quiet <= 10 * (1000.0 + 2 * TICK_SECONDS)


def hung_run(**settings: Any) -> World:
    """Two engines, of which the second hangs from 7 s on; nobody else would find out."""

    async def main() -> World:
        engines = [FakeEngine(index, latency=lambda: 4.0) for index in range(2)]
        world = build(batch_size=4, engines=engines, revive_seconds=lambda: 10.0, health=LIMITS, steps=30, **settings)
        asyncio.get_running_loop().call_later(7.0, engines[1].hang)
        await world.run()
        return world

    return run_virtual(main())


def test_a_hung_engine_is_replaced_and_its_prompts_are_generated_again_at_once() -> None:
    world = hung_run()
    ((lost_at, lost),) = world.of(EngineLost)
    assert lost.engine == 1
    assert "did not answer within 60 s" in lost.message
    assert 67.0 <= lost_at <= 7.0 + ASK_SECONDS + 60.0
    failed = world.of(GroupFailed)
    assert {time for time, _ in failed} == {lost_at}
    prompt_of = {event.group: event.prompt for _, event in world.of(GroupDispatched)}
    again = [event.prompt for time, event in world.of(GroupDispatched) if time == lost_at]
    assert again == [prompt_of[event.group] for _, event in failed]
    assert len(world.of(EngineReplaced)) == 1
    assert len(world.of(BatchTaken)) == 30


def test_no_engine_is_asked_after_the_run() -> None:
    async def main() -> None:
        world = build(steps=2, revive_seconds=lambda: 1.0, health=LIMITS)
        await world.run()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())
