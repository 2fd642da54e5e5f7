"""Rollouts and new weights that must not overlap; every wait is for an event that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dapo_openrlhf.backend.engine.gate import Gate


class Walk:
    """Something that passes the gate, and stays inside until it is told to leave."""

    def __init__(self, gate: Gate, inside: Callable[[Gate], object]) -> None:
        self.entered, self._leave = asyncio.Event(), asyncio.Event()
        self._task = asyncio.ensure_future(self._pass(inside(gate)))

    async def _pass(self, inside: object) -> None:
        async with inside:  # type: ignore[attr-defined]  # either of the two
            self.entered.set()
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self._task

    async def give_up(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_weights_wait_for_the_rollouts_inside_and_keep_new_ones_out() -> None:
    async def main() -> None:
        gate = Gate()
        first, second = Walk(gate, Gate.rollouts), Walk(gate, Gate.rollouts)
        await first.entered.wait()
        await second.entered.wait()
        weights = Walk(gate, Gate.weights)
        await settle()
        late = Walk(gate, Gate.rollouts)
        await first.leave()
        await settle()
        assert not weights.entered.is_set() and not late.entered.is_set()
        await second.leave()
        await weights.entered.wait()
        await settle()
        assert not late.entered.is_set()
        await weights.leave()
        await late.entered.wait()
        await late.leave()

    asyncio.run(main())


@pytest.mark.parametrize("waiting", [Gate.rollouts, Gate.weights])
def test_who_gives_up_waiting_holds_nobody_up(waiting: Callable[[Gate], object]) -> None:
    async def main() -> None:
        gate = Gate()
        inside = Walk(gate, Gate.weights if waiting is Gate.rollouts else Gate.rollouts)
        await inside.entered.wait()
        gone = Walk(gate, waiting)
        await settle()
        await gone.give_up()
        await inside.leave()
        for kind in (Gate.rollouts, Gate.weights):
            after = Walk(gate, kind)
            await after.entered.wait()
            await after.leave()

    asyncio.run(main())
