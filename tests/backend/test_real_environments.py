"""Environment actors over a real Ray: an engine's calls, what is printed, and an actor that dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]

ENVIRONMENT = """
import os
from dapo_openrlhf.environments.messages import Observation, Step

class Environment:
    async def reset(self, prompt):
        print("playing", prompt.label)
        return Observation(text=prompt.text + "!")

    async def step(self, action):
        if action.text == "die":
            os.kill(int(action.observed), 9)
        return Step(observation=str(1 / int(action.text)), done=True)
"""

PROGRAM = """
import asyncio
import os
import sys

import ray

from dapo_openrlhf.backend.run.environment_pool import EnvironmentPool
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.types import Prompt

PROMPT = Prompt(id=0, text="one", token_ids=(1,), label="L")


class Engine:
    def __init__(self, environments):
        self._environments = environments

    async def play(self, episode, text, observed=""):
        observation = await self._environments.open(episode, PROMPT)
        try:
            step = await self._environments.step(episode, Action(text=text, observed=observed))
            return observation.text, step.observation, step.done
        except EnvironmentFailed as error:
            return error.reason, str(error)
        finally:
            await self._environments.close(episode)

    async def host(self):
        return ray.get_runtime_context().get_node_id()


async def main():
    said = asyncio.Event()
    pool = EnvironmentPool(EnvironmentSettings(file=sys.argv[1]), say=lambda line: (print(line), said.set()))
    print(len(await asyncio.gather(*pool.ready())))
    engine = ray.remote(Engine).remote(pool.environments)
    print(await engine.play.remote("a", "4"))
    print(await engine.play.remote("b", "0"))
    printing = asyncio.ensure_future(pool.supervise())
    await said.wait()
    (actor,) = pool._actors
    pid = await actor.__ray_call__.remote(lambda self: os.getpid())
    print(await engine.play.remote("c", "die", str(pid)))
    print(await engine.play.remote("d", "2"))
    printing.cancel()


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
asyncio.run(main())
"""


def test_an_engine_plays_through_actors_that_may_die(tmp_path: Path) -> None:
    file = tmp_path / "played.py"
    file.write_text(ENVIRONMENT)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "1",
        "('one!', '0.25', True)",
        "('environment_error', 'played.py: ZeroDivisionError: division by zero (played.py, line 13)')",
    ]
    assert lines[3] == "environment: playing L"
    died, after = lines[-2:]
    assert died.startswith("('environment_died', ") and after == "('one!', '0.5', True)"
