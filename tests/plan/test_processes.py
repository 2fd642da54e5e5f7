"""Simulations in several processes are the same as in one, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from dapo_openrlhf.plan.processes import Asked, Processes
from dapo_openrlhf.plan.scenario import EngineSpeed, Scenario, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.splits import Split

SPLIT = Split(engines=1, tensor_parallel=1, ranks=1)
SCENARIO = Scenario(
    engines=1,
    engine=EngineSpeed(step=0.01),
    trainer=TrainerSpeed(step=0.5, per_token=0.0),
    sync=SyncSpeed(send=0.01, deliver=0.01, pause=0.0),
    work=Work.drawn(
        groups=20, responses=2, mean=20, spread=1.0, most=200, pass_rate=1.0, prompt_tokens=5, reward_seconds=0.1
    ),
    batch_size=4,
    max_staleness=0,
)
LEFT_ALONE = """
import os, sys
from dapo_openrlhf.plan.processes import Processes
processes = Processes(2)
processes._pool.submit(int).result()
print(*processes._pool._processes, flush=True)
sys.stdin.read()
"""


def test_processes_predict_what_this_one_does() -> None:
    asked: list[Asked] = [(SPLIT, SCENARIO.at(k), 12) for k in (0, 1, 2)]
    with Processes(2) as several, Processes(1) as none:
        found = [future.result() for future in several.simulate(asked)]
        assert found == [future.result() for future in none.simulate(asked)]
    assert [one.max_staleness for one in found] == [0, 1, 2]


def test_an_error_of_a_simulation_is_raised_here() -> None:
    with Processes(2) as processes:
        (future,) = processes.simulate([(SPLIT, SCENARIO.at(-1), 12)])
        with pytest.raises(ValueError, match="max_staleness"):
            future.result()


def test_processes_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", LEFT_ALONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [psutil.Process(int(word)) for word in parent.stdout.readline().split()]
    assert children
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert not alive
