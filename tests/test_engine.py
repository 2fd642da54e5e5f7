"""The engine actor's own part: what happens to a group before and after the engine loop has it. No vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from dapo_openrlhf.backend.engine import EngineActor
from dapo_openrlhf.backend.messages import PromptTooLong
from dapo_openrlhf.ports import Sampling

SAMPLING = Sampling(n=2, max_new_tokens=10, temperature=1.0, top_p=1.0)


class FakeLoop:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Any]:
        self.asked.append((group_id, prompt_ids))
        return Future()

    def cut(self, group_id: str) -> None:
        self.asked.append(f"cut {group_id}")


def make_actor(loop: FakeLoop) -> EngineActor:
    actor = EngineActor.__new__(EngineActor)
    vars(actor).update(_loop=loop, _max_len=99)
    return actor


def test_the_loop_gets_the_prompts_own_token_ids_and_a_cut_finds_its_group() -> None:
    """A group that the loop does not know when its cut comes would run to its end with nobody waiting for it."""
    loop = FakeLoop()

    async def main() -> None:
        actor = make_actor(loop)
        group = asyncio.create_task(actor.generate("first", (5, 6, 7), SAMPLING))
        await asyncio.sleep(0)
        await actor.cut("first")
        assert loop.asked == [("first", (5, 6, 7)), "cut first"]
        group.cancel()

    asyncio.run(main())


def test_a_prompt_that_leaves_no_room_for_a_response_never_reaches_the_loop() -> None:
    loop = FakeLoop()
    with pytest.raises(PromptTooLong, match=r"prompt of 90 tokens and rollout\.max_new_tokens 10 .* data\.max_len 99"):
        asyncio.run(make_actor(loop).generate("long", (5,) * 90, SAMPLING))
    assert loop.asked == []
