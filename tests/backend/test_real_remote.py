"""The engine's port over a real Ray: what ends before it is done leaves no traceback on the user's screen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import asyncio
import gc

import ray

from dapo_openrlhf.backend.messages import BadPrompt
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine
from dapo_openrlhf.pipeline.ports import GroupError, Sampling
from dapo_openrlhf.types import Prompt


class Engine:
    def __init__(self):
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def wait(self, name):
        await getattr(self, name).wait()

    async def generate(self, request, prompt_ids, sampling):
        if len(prompt_ids) == 900:
            raise BadPrompt("prompt_too_long", "900 tokens")
        self.stopped = asyncio.Event()
        self.begun.set()
        await self.stopped.wait()
        self.ended.set()
        return None, None, None

    async def cut(self, request):
        self.stopped.set()


async def main():
    engine = RemoteEngine(lambda index: ray.remote(Engine).remote(), index=0)
    sampling = Sampling(n=2, max_new_tokens=8, temperature=1.0, top_p=1.0)
    try:
        await engine.generate("a", Prompt(id=0, text="long", token_ids=(7,) * 900, label="1"), sampling)
    except GroupError as error:
        print(error.reason)
    cancelled = asyncio.create_task(engine.generate("b", Prompt(id=1, text="short", token_ids=(7,), label="1"), sampling))
    await engine.actor.wait.remote("begun")
    cancelled.cancel()
    await asyncio.wait([cancelled])
    print("cancelled", cancelled.cancelled())
    await engine.actor.wait.remote("ended")


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
asyncio.run(main())
gc.collect()
"""


def test_a_group_that_fails_or_is_given_up_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["prompt_too_long", "cancelled True"]
    assert "Unhandled error" not in done.stderr
