"""The engine actor's own part: what happens to a group before and after the engine loop has it. No vLLM."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from patience import HANG_SECONDS

from dapo_openrlhf.backend.engine import EngineActor
from dapo_openrlhf.ports import Sampling

SAMPLING = Sampling(n=2, max_new_tokens=10, temperature=1.0, top_p=1.0)


class FakeLoop:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, group_id: str, prompt_ids: list[int], sampling: Sampling) -> Future[Any]:
        self.asked.append(f"generate {group_id}")
        return Future()

    def cut(self, group_id: str) -> None:
        self.asked.append(f"cut {group_id}")


def test_a_group_that_is_cut_while_it_is_tokenized_is_never_generated() -> None:
    """It would run to its end with nobody waiting for it."""
    loop, go_on = FakeLoop(), threading.Event()

    def tokenize(text: str) -> dict[str, list[int]]:
        go_on.wait(HANG_SECONDS)
        return {"input_ids": [1, 2, 3]}

    async def main() -> None:
        with ThreadPoolExecutor(1) as texts:
            actor = EngineActor.__new__(EngineActor)
            parts = {
                "_tokenizer": tokenize,
                "_texts": texts,
                "_loop": loop,
                "_apply_chat_template": False,
                "_max_len": 99,
            }
            vars(actor).update(parts, _tokenizing={})
            early = asyncio.create_task(actor.generate("early", "1+1=", SAMPLING))
            late = asyncio.create_task(actor.generate("late", "1+1=", SAMPLING))
            await asyncio.sleep(0)
            await actor.cut("early")
            go_on.set()
            assert await early == (None, None, None)
            while not loop.asked:
                await asyncio.sleep(0.001)
            await actor.cut("late")
            assert loop.asked == ["generate late", "cut late"]
            late.cancel()

    asyncio.run(main())
