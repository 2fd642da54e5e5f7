"""A training that signals end, on Ray, vLLM and DeepSpeed: in one line, with what it has learned, and with nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from patience import HANG_SECONDS
from tiny_run import make_config

from dapo_openrlhf import stopping
from dapo_openrlhf.config.loading import dump_config
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import Checkpointed, Event, StepTrained
from dapo_openrlhf.pipeline.manifest import problems
from dapo_openrlhf.program import program

pytestmark = pytest.mark.real

POLL_SECONDS = 0.05


@pytest.fixture(autouse=True)
def nothing_is_ignored() -> Iterator[None]:
    """nohup, and shells in the background, ignore signals for all that they start."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in stopping.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``dapo-openrlhf train``, with a process group of its own as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "dapo_openrlhf", "train", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_event(process: subprocess.Popen[str], log: Path, wanted: Callable[[Event], bool]) -> Event:
    """Follow its event log until something has happened; returns it."""
    while process.poll() is None:
        found = [logged.event for logged in read(log) if wanted(logged.event)] if log.exists() else []
        if found:
            return found[0]
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"it ended: {process.communicate()}")


def end(process: subprocess.Popen[str], family: list[psutil.Process]) -> str:
    """What it says in the end. Whatever it has started must end with it."""
    _, errors = process.communicate(timeout=HANG_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=HANG_SECONDS)
    assert not alive
    return errors


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def leave_a_daemon(reward: Path, pids: Path) -> None:
    """Let a reward leave a process in a session of its own, without parent, at the first response it sees."""
    reward.write_text(
        "import os, time\n"
        "left = []\n\n\n"
        "def daemon():\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        f"            with open({str(pids)!r}, 'a') as file:\n"
        "                file.write(f'{os.getpid()}\\n')\n"
        "            os.closerange(0, 256)\n"
        "            time.sleep(1e6)\n"
        "        os._exit(0)\n"
        "    os.wait()\n\n\n"
        + reward.read_text().replace("    right =", "    left or left.append(daemon())\n    right =")
    )


def test_while_ray_and_the_actors_start(tmp_path: Path) -> None:
    """The reward is loaded once before they start, and never comes to an end when one of them loads it."""
    config = make_config(tmp_path)
    began = tmp_path / "began"
    (tmp_path / "reward.py").write_text(
        "import pathlib, time\n"
        f"checked, began = pathlib.Path({str(tmp_path / 'checked')!r}), pathlib.Path({str(began)!r})\n"
        "if checked.exists():\n    began.touch()\n    time.sleep(1e6)\n"
        "checked.touch()\n\n\n"
        "def reward_func(queries, prompts, labels):\n    return 1.0\n"
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    process = begin(tmp_path, "--config", "c.yaml")
    while not began.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(POLL_SECONDS)
    family = family_of(process)
    process.send_signal(signal.SIGTERM)
    assert end(process, family) == "stopped by SIGTERM: nothing was trained yet\n"
    assert process.returncode == 143


def test_while_it_trains_and_going_on_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1, as Slurm sends it, makes a checkpoint; Ctrl-C, to the whole group, another one."""
    endless = make_config(tmp_path, **{"train.max_steps": 100_000, "train.grace_seconds": float(HANG_SECONDS)})
    (tmp_path / "c.yaml").write_text(dump_config(endless))
    leave_a_daemon(tmp_path / "reward.py", tmp_path / "daemons")
    process = begin(tmp_path, "--config", "c.yaml", "--run.name", "sums", "--resume", "auto")
    run = tmp_path / "runs" / "sums"
    wait_for_event(process, run / "events.jsonl", lambda event: isinstance(event, StepTrained))
    process.send_signal(signal.SIGUSR1)
    kept = wait_for_event(process, run / "events.jsonl", lambda event: isinstance(event, Checkpointed))
    assert isinstance(kept, Checkpointed)
    wait_for_event(
        process, run / "events.jsonl", lambda event: isinstance(event, StepTrained) and event.step >= kept.step
    )
    family = family_of(process)
    os.killpg(process.pid, signal.SIGINT)
    words = end(process, family)
    assert process.returncode == 130, words
    saved = sorted((run / "checkpoints").iterdir())
    steps = int(saved[-1].name.removeprefix("step-"))
    monkeypatch.chdir(tmp_path)  # where the command ran, from which its name is said
    assert words == (
        f"stopped by SIGINT: {steps} rollout steps are done, and the newest checkpoint is {saved[-1]}; to go on: "
        f"{program()} train --resume {run}\n"
    )
    assert len(saved) >= 2 and not any(problems(path) for path in saved)

    second = begin(
        tmp_path, "--config", "c.yaml", "--run.name", "sums", "--resume", "auto", "--train.max_steps", str(steps + 1)
    )
    output, errors = second.communicate(timeout=HANG_SECONDS)
    assert second.returncode == 0, output + errors
    assert f"resuming after {steps} rollout steps" in output
    trained = [logged.event.step for logged in read(run / "events.jsonl") if isinstance(logged.event, StepTrained)]
    assert trained == [*range(steps + 1)]
    daemons = [int(pid) for pid in (tmp_path / "daemons").read_text().split()]
    assert len(daemons) >= 2 and not any(map(psutil.pid_exists, daemons)), "each run's rewards have left one"
