"""What may be left undone when a run is asked to end, and what should be finished."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest

from dapo_openrlhf.pipeline.stop import GraceOver, StopAsked, StopRequest
from dapo_openrlhf.plan.virtual_time import run_virtual as run


async def after(seconds: float, done: list[str] | None = None) -> float:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if done is not None:
            done.append("cancelled")
        raise
    return asyncio.get_running_loop().time()


def play(work: str, seconds: float, *asked: float, grace: float = 10.0) -> tuple[object, float, list[str]]:
    """The result or error of some work of so many seconds, when it came, and whether the work was cancelled."""
    cancelled: list[str] = []

    async def main() -> tuple[object, float, list[str]]:
        stop = StopRequest(grace=grace)
        loop = asyncio.get_running_loop()
        started = loop.time()
        for time in asked:
            loop.call_later(time, stop.ask)
        task: Coroutine[Any, Any, float] = after(seconds, cancelled)
        try:
            result: object = await (stop.unless_asked(task) if work == "may" else stop.within_grace(task)) - started
        except (StopAsked, GraceOver) as error:
            result = type(error)
        return result, loop.time() - started, cancelled

    return run(main())


@pytest.mark.parametrize(
    ("work", "seconds", "asked", "expected"),
    [
        ("may", 5.0, (), (5.0, 5.0, [])),
        ("may", 5.0, (2.0,), (StopAsked, 2.0, ["cancelled"])),
        ("may", 5.0, (7.0,), (5.0, 5.0, [])),
        ("should", 5.0, (), (5.0, 5.0, [])),
        ("should", 5.0, (2.0,), (5.0, 5.0, [])),
        ("should", 50.0, (2.0,), (GraceOver, 12.0, ["cancelled"])),
        ("should", 50.0, (2.0, 4.0), (GraceOver, 4.0, ["cancelled"])),
    ],
)
def test_work_ends_or_is_ended_in_time(work: str, seconds: float, asked: tuple[float, ...], expected: object) -> None:
    assert play(work, seconds, *asked) == expected


def test_all_that_should_be_finished_shares_one_grace() -> None:
    async def main() -> float:
        stop = StopRequest(grace=10.0)
        stop.ask()
        started = asyncio.get_running_loop().time()
        await stop.within_grace(after(6.0))
        with pytest.raises(GraceOver):
            await stop.within_grace(after(6.0))
        return asyncio.get_running_loop().time() - started

    assert run(main()) == 10.0


def test_errors_of_the_work_come_through_and_its_waiter_takes_it_along() -> None:
    async def fails() -> None:
        await asyncio.sleep(1)
        raise KeyError("its own")

    async def main() -> list[str]:
        stop = StopRequest(grace=10.0)
        for guard in (stop.unless_asked, stop.within_grace):
            with pytest.raises(KeyError, match="its own"):
                await guard(fails())
        ended: list[str] = []
        waiter = asyncio.create_task(stop.within_grace(after(5.0, ended)))
        await asyncio.sleep(1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        stop.check()
        stop.ask()
        with pytest.raises(StopAsked):
            stop.check()
        return ended

    assert run(main()) == ["cancelled"]


@pytest.mark.parametrize(
    ("asked", "expected"), [((), 5000.0), ((20.0,), 30.0), ((20.0, 22.0), 22.0)], ids=["never", "once", "twice"]
)
def test_a_run_that_cannot_go_on_has_all_the_time_until_somebody_asks(
    asked: tuple[float, ...], expected: float
) -> None:
    async def main() -> float:
        stop, loop = StopRequest(grace=10.0), asyncio.get_running_loop()
        stop.ask_without_deadline()
        with pytest.raises(StopAsked):
            await stop.unless_asked(after(1.0))
        for time in asked:
            loop.call_later(time, stop.ask)
        with contextlib.suppress(GraceOver):
            await stop.within_grace(after(5000.0))
        return loop.time()

    assert run(main()) == expected
