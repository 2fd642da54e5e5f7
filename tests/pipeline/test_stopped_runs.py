"""A run that is asked to end, at any moment: what it has trained is kept, and going on trains nothing twice."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest
from fakes import FakeEngine, World, build

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.stop import StopRequest
from dapo_openrlhf.plan.virtual_time import run_virtual

pytestmark = pytest.mark.long

STEPS, BATCH = 6, 2


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that has ended, and how long that took once it was asked to."""

    outcome: Outcome
    world: World
    seconds: float
    asked: bool

    @property
    def prompts(self) -> list[int]:
        """Of the trained groups, in the order of the batches."""
        return [group.prompt.id for batch in self.world.trainer.batches for group in batch.groups]


def play(
    *asked: float,
    grace: float = 50.0,
    saves: tuple[float, ...] = (),
    state: RunState | None = None,
    train: float = 1.0,
    seed: int = 0,
    evaluate: bool = False,
) -> Ended:
    """A run that is asked to end at these times, and to save at those."""

    async def main() -> Ended:
        dice = random.Random(seed)
        world = build(
            steps=STEPS,
            batch_size=BATCH,
            max_staleness=1,
            engines=[FakeEngine(index, latency=lambda: dice.uniform(0.5, 3.0)) for index in range(2)],
            train_seconds=lambda: train,
            send_seconds=lambda: 0.25,
            deliver_seconds=lambda: 0.5,
            problem_count=3 if evaluate else 0,
            eval_steps=2 if evaluate else -1,
            state=state,
        )
        stop, loop = StopRequest(grace=grace), asyncio.get_running_loop()
        for time in asked:
            loop.call_later(time, stop.ask)
        for time in saves:
            loop.call_later(time, stop.ask_to_save)
        outcome = await world.pipeline.run(stop)
        left_over = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left_over, f"tasks outlived the run: {left_over}"
        return Ended(outcome=outcome, world=world, seconds=loop.time() - min(asked, default=0.0), asked=stop.asked)

    ended = run_virtual(main())
    assert not any(engine.running for engine in ended.world.engines), "engines generate for a run that is over"
    return ended


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_what_is_trained_is_kept_and_nothing_is_trained_twice(seed: int, evaluate: bool) -> None:
    check(play(random.Random(seed).uniform(0.0, 25.0), seed=seed, evaluate=evaluate))


@pytest.mark.parametrize("evaluate", [False, True])
def test_so_it_is_at_the_very_moment_of_any_event(evaluate: bool) -> None:
    times = sorted({time for time, _ in play(evaluate=evaluate).world.events})
    assert len(times) > 30
    for time in times:
        check(play(time, evaluate=evaluate))


def check(first: Ended, seed: int = 1000) -> None:
    """What a run leaves that was asked to end, and what going on makes of it."""
    done = first.outcome.steps
    assert len(first.world.trainer.batches) == done
    if not first.asked:
        assert done == STEPS
        return
    assert first.seconds <= 2.0, "a step in training takes one second, sending less"
    if done == 0:
        assert first.world.checkpoints.states == [] and first.outcome.checkpoint is None
        return
    if first.outcome.model_saved:
        return
    (state,) = first.world.checkpoints.states
    assert (state.step, first.outcome.checkpoint) == (done, f"checkpoint-{done}")
    if done == STEPS:
        return
    second = play(state=state, seed=seed)
    assert second.outcome.steps == STEPS - done
    trained = first.prompts + second.prompts
    assert len(set(trained)) == len(trained) == STEPS * BATCH


def test_a_step_that_takes_longer_than_the_grace_is_given_up() -> None:
    ended = play(10.0, grace=5.0, train=100.0)
    assert (ended.outcome.steps, ended.outcome.checkpoint, ended.seconds) == (0, None, 5.0)


def test_asked_twice_it_ends_at_once() -> None:
    ended = play(10.0, 11.0, grace=50.0, train=100.0)
    assert (ended.outcome.steps, ended.seconds) == (0, 1.0)


def test_a_checkpoint_can_be_asked_for_while_the_run_goes_on() -> None:
    """Before the first step there is nothing to keep; in training it waits for the step's end, else it is made at once."""
    ended = play(saves=(0.1, 5.0, 9.0))
    assert ended.outcome.steps == STEPS and ended.outcome.model_saved
    steps = [state.step for state in ended.world.checkpoints.states]
    assert len(steps) == 2 and 0 < steps[0] < steps[1] < STEPS
    assert len(set(ended.prompts)) == STEPS * BATCH


def test_two_requests_for_one_step_make_one_checkpoint() -> None:
    ended = play(saves=(9.0, 9.1))
    assert len(ended.world.checkpoints.states) in (1, 2)
    assert len({state.step for state in ended.world.checkpoints.states}) == len(ended.world.checkpoints.states)
