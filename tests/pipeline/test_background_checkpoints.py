"""Checkpoints are written beside training: what goes on meanwhile, what waits, and what an error does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes import World, build

from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.events import Checkpointed, Event, SnapshotTaken, StepDone
from dapo_openrlhf.pipeline.metrics import Row, StepMetrics
from dapo_openrlhf.pipeline.stop import StopRequest
from dapo_openrlhf.plan.virtual_time import run_virtual

AGES = 1000.0
"""Seconds in which everything happens that does not wait for something."""


def saved(world: World) -> list[int]:
    """Steps of the complete checkpoints."""
    return [state.step for state in world.checkpoints.states]


def play(main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    run_virtual(run())


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits() -> None:
    async def main() -> None:
        gate, begun = asyncio.Event(), list[str]()

        async def write(folder: str) -> None:
            begun.append(folder)
            if folder == "checkpoint-2":
                await gate.wait()

        world = build(steps=7, save_steps=2, write=write)
        run = asyncio.create_task(world.run())
        await asyncio.sleep(AGES)
        assert len(world.trainer.batches) == 4, "two more steps, until the next checkpoint is due"
        assert (begun, saved(world)) == (["checkpoint-2"], [])
        assert world.trainer.snapshot_held == "checkpoint-2" and world.trainer.saved == [(2, "checkpoint-2")]
        gate.set()
        outcome = await run
        assert outcome.steps == 7
        assert saved(world) == [2, 4, 6, 7]
        assert outcome.checkpoint == "checkpoint-7"
        pauses = {event.step: event.seconds for _, event in world.of(SnapshotTaken)}
        assert pauses[2] == pytest.approx(0.1) and pauses[4] > AGES / 2, "what the second one waited is in its pause"
        seconds = {event.step: event.seconds for _, event in world.of(Checkpointed) if event.path != "model"}
        assert seconds[2] > AGES / 2

    play(main)


def test_pause_and_writing_are_in_the_metrics() -> None:
    """The pause belongs to the step that was held up, the rest to the one in which the checkpoint was complete."""

    async def main() -> None:
        world = build(steps=4, save_steps=2, write=lambda folder: asyncio.sleep(1.5))
        metrics, rows = StepMetrics(started=0.0), list[Row]()

        def listen(event: Event) -> None:
            metrics.add(event)
            if isinstance(event, StepDone):
                rows.append(metrics.row(now=world.log.now()))

        world.log.listen(listen)
        await world.run()
        assert [row["seconds/save"] for row in rows] == pytest.approx([0.0, 0.1, 0.0, 0.0])
        written = {step: row["seconds/checkpoint"] for step, row in enumerate(rows) if "seconds/checkpoint" in row}
        assert written in ({2: pytest.approx(1.6)}, {3: pytest.approx(1.6)})

    play(main)


def test_the_state_is_that_of_the_snapshots_moment() -> None:
    """However long it is written, and whatever is drawn meanwhile; the fakes compare the two."""

    async def main() -> None:
        world = build(steps=6, save_steps=2, write=lambda folder: asyncio.sleep(1.5))
        await world.run()
        drawn = [state.prompts.drawn for state in world.checkpoints.states]
        assert saved(world) == [2, 4, 6] and drawn[0] < drawn[1] < drawn[2]

    play(main)


def test_an_error_while_writing_ends_the_run_and_leaves_the_checkpoint_before() -> None:
    async def main() -> None:
        async def write(folder: str) -> None:
            await asyncio.sleep(1.5)
            if folder == "checkpoint-4":
                raise OSError(28, "No space left on device", folder)

        world = build(steps=20, save_steps=2, write=write)
        with pytest.raises(ExceptionGroup) as ended:
            await world.run()
        assert [str(error) for error in ended.value.exceptions] == [
            "[Errno 28] No space left on device: 'checkpoint-4'"
        ]
        assert (saved(world), world.checkpoints.discarded) == ([2], [4])
        assert len(world.trainer.batches) < 8, "not only when the next one is due"
        assert world.pipeline.outcome.checkpoint == "checkpoint-2"

    play(main)


def test_the_run_ends_when_its_last_checkpoint_is_written() -> None:
    async def main() -> None:
        world = build(steps=4, save_steps=3, write=lambda folder: asyncio.sleep(AGES))
        outcome = await world.run()
        assert (saved(world), outcome.checkpoint, outcome.model_saved) == ([3, 4], "checkpoint-4", True)
        assert [event.path for _, event in world.of(Checkpointed)] == ["checkpoint-3", "checkpoint-4", "model"]

    play(main)


def test_a_checkpoint_in_progress_is_completed_though_something_else_ends_the_run() -> None:
    async def main() -> None:
        world = build(steps=8, save_steps=2, train_fails_at=2, write=lambda folder: asyncio.sleep(AGES))
        with pytest.raises(ExceptionGroup) as ended:
            await world.run()
        assert [str(error) for error in ended.value.exceptions] == ["trainer rank 0 ran out of memory in step 2"]
        assert (saved(world), world.checkpoints.discarded) == ([2], [])

    play(main)


async def stopped(world: World, *, after: int, grace: float, twice: bool = False) -> tuple[Outcome, float]:
    """The outcome of a run that is asked to end once so many steps are trained, and how long that took."""
    stop, clock = StopRequest(grace=grace), asyncio.get_running_loop().time
    run = asyncio.create_task(world.pipeline.run(stop))
    while len(world.trainer.batches) < after:
        await asyncio.sleep(0.25)
    asked = clock()
    stop.ask()
    if twice:
        await asyncio.sleep(2.0)
        stop.ask()
    return await run, clock() - asked


@pytest.mark.parametrize("writing", [0.0, 3.0, 10.0])
def test_a_stop_waits_for_what_is_written_within_its_grace(writing: float) -> None:
    async def main() -> None:
        world = build(steps=50, write=lambda folder: asyncio.sleep(writing))
        outcome, seconds = await stopped(world, after=3, grace=30.0)
        assert outcome.checkpoint == f"checkpoint-{outcome.steps}" and saved(world) == [outcome.steps]
        assert writing <= seconds <= writing + 2.0

    play(main)


@pytest.mark.parametrize(("twice", "expected"), [(False, 20.0), (True, 2.0)])
def test_a_stop_gives_up_what_takes_longer(twice: bool, expected: float) -> None:
    async def main() -> None:
        world = build(steps=50, write=lambda folder: asyncio.sleep(AGES))
        outcome, seconds = await stopped(world, after=3, grace=20.0, twice=twice)
        assert (outcome.checkpoint, saved(world), seconds) == (None, [], expected)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert world.checkpoints.discarded == [outcome.steps]

    play(main)


def test_a_checkpoint_that_was_asked_for_is_written_before_the_run_goes_on() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def write(folder: str) -> Any:
            await gate.wait()

        world, stop = build(steps=6, write=write), StopRequest(grace=10.0)
        run = asyncio.create_task(world.pipeline.run(stop))
        while len(world.trainer.batches) < 2:
            await asyncio.sleep(0.25)
        stop.ask_to_save()
        await asyncio.sleep(AGES)
        done = len(world.trainer.batches)
        assert done < 6 and stop.save_wanted and saved(world) == []
        gate.set()
        await run
        assert saved(world) == [done] and not stop.save_wanted

    play(main)
