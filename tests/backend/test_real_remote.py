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


HANGS = """
import asyncio
import gc
import os
import signal

import ray

from dapo_openrlhf.backend.messages import GenerationReport
from dapo_openrlhf.backend.run.remote_engine import EngineRestarts, RemoteEngine
from dapo_openrlhf.pipeline.engine_pool import EnginePool
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.pipeline.health import HealthLimits
from dapo_openrlhf.pipeline.ports import GroupError, Health, Sampling
from dapo_openrlhf.types import Prompt

REPORT = GenerationReport(
    prompt_length=1, lengths=(1,), truncated=(False,), cut=(False,), oldest_version=0, newest_version=0, version_tokens=(1,)
)


class Engine:
    def __init__(self):
        self.begun = asyncio.Event()

    async def ready(self):
        return os.getpid()

    async def health(self):
        return Health(doing="generating", steps_begun=0, steps_ended=0)

    async def wait(self):
        await self.begun.wait()

    async def generate(self, request, prompt_ids, sampling):
        self.begun.set()
        if request == "without end":
            await asyncio.Event().wait()
        return REPORT, None, None

    async def cut(self, request):
        pass


async def main():
    engine = RemoteEngine(lambda index: ray.remote(Engine).options(max_concurrency=100).remote(), index=0)
    pool = EnginePool(
        [engine],
        reviver=EngineRestarts([engine], start_timeout=1e4),
        restarts=[RestartBudget(1)],
        health=HealthLimits(answer=10.0),
        on_event=lambda event: print(type(event).__name__),
    )
    supervision = asyncio.create_task(pool.supervise())
    sampling, prompt = Sampling(n=1, max_new_tokens=8, temperature=1.0, top_p=1.0), Prompt(id=0, text="short", token_ids=(7,), label="1")
    group = asyncio.create_task(pool.generate("without end", prompt, sampling, 1e4))
    await engine.actor.wait.remote()
    hung = await engine.actor.ready.remote()
    os.kill(hung, signal.SIGSTOP)
    try:
        await group
    except GroupError as error:
        print(error.reason, error)
    print("generated in", (await pool.generate("again", prompt, sampling, 1e4)).engine)
    print("another process:", await engine.actor.ready.remote() != hung)
    print("old news:", engine.stop("too late", life=0), engine.life)
    print("still there:", (await pool.generate("once more", prompt, sampling, 1e4)).engine)
    supervision.cancel()
    await asyncio.wait([supervision])


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
asyncio.run(main())
gc.collect()
"""


def test_a_process_that_is_stopped_is_replaced_and_its_groups_fail_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "EngineLost",
        "engine_died engine 0 hangs: its process did not answer within 10 s (vllm.health_timeout); last seen: ready",
        "EngineReplaced",
        "generated in 0",
        "another process: True",
        "old news: False 1",
        "still there: 0",
    ]
    assert "Unhandled error" not in done.stderr
