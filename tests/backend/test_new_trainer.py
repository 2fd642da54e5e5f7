"""What a run does to replace its trainer: which checkpoint, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_actors import FakeActor

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run import new_trainer
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.new_trainer import NewTrainer
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.backend.run.workers import Workers
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, RunState
from dapo_openrlhf.pipeline.lives import Carried
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.pipeline.prompts import PromptState
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion

INPUTS = Inputs(device=Device(kind="cpu", threads=1), prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=()))
CONFIG = build_config({"actor": {"model_name_or_path": "hub/model"}, "data": {"prompt_dataset": "d"}}, source="test")


def new_one(
    folder: Path, *steps: int, said: Callable[[str], None] = print, workers: Any = None, **parts: Any
) -> NewTrainer:
    """For a run with checkpoints of these steps."""
    checkpoints = Checkpoints(folder, max_num=9)
    for step in steps:
        (Path(checkpoints.begin(step)) / "model.safetensors").write_bytes(b"weights")
        checkpoints.finish(RunState(step=step, prompts=PromptState(drawn=step, returned=(), prompt_count=9)))
    given: dict[str, Any] = {"open_publisher": None, "build": None, **parts}
    return NewTrainer(config=CONFIG, inputs=INPUTS, workers=workers, checkpoints=checkpoints, say=said, **given)


def damage(folder: Path, step: int) -> None:
    (folder / f"step-{step:06d}" / "model.safetensors").write_bytes(b"weighs")


def test_it_begins_where_a_resumed_run_would(tmp_path: Path) -> None:
    said: list[str] = []
    source = new_one(tmp_path, 2, 4, 6, said=said.append)
    assert asyncio.run(source.newest()) == 6
    damage(tmp_path, 6)
    assert asyncio.run(source.newest()) == 4
    assert "step-000006 is damaged and is passed over" in said[0]
    assert source.inputs.checkpoint == tmp_path / "step-000004"
    assert source.inputs.state is not None and source.inputs.state.prompts.drawn == 4


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path) -> None:
    source = new_one(tmp_path)
    assert (asyncio.run(source.newest()), source.inputs) == (0, INPUTS)


def test_a_resumed_run_does_not_begin_anew(tmp_path: Path) -> None:
    source = new_one(tmp_path, 4)
    asyncio.run(source.newest())
    damage(tmp_path, 4)
    with pytest.raises(RuntimeError, match=r"step-000004 and all other checkpoints are damaged"):
        asyncio.run(source.newest())


def test_the_version_that_comes_again_is_published_from_new_ranks_to_the_engines_that_stayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    async def replaced(config: Any, inputs: Inputs, workers: Workers) -> None:
        done.append(f"ranks from {inputs.checkpoint}")
        workers.ranks = [FakeActor(alive=asyncio.sleep)]

    class Publisher:
        async def send(self, version: PolicyVersion) -> Publication:
            done.append(f"send {version}")
            return Publication(version=version, bytes=0, checksum=0)

        async def deliver(self, publication: Publication) -> None:
            done.append("deliver")

    async def opened(workers: Workers) -> Any:
        assert len(workers.ranks) == 1
        return Publisher()

    def build(workers: Workers, publisher: Any, inputs: Inputs, carried: Carried) -> Any:
        done.append(f"build at {inputs.first_step}")

    actors = [FakeActor(), FakeActor()]
    killed: list[Any] = []
    monkeypatch.setattr(new_trainer, "replace_ranks", replaced)
    monkeypatch.setattr("ray.kill", killed.append)
    engines = [RemoteEngine(lambda index: actors[index], index=index) for index in range(2)]
    old = [object(), object()]
    workers = Workers(engines=engines, ranks=list(old), rewards=None)  # type: ignore[arg-type]
    source = new_one(tmp_path, 4, workers=workers, open_publisher=opened, build=build)

    async def main() -> None:
        await source.end()
        assert killed == old
        await source.newest()
        await source.begin(Carried())

    monkeypatch.setattr(asyncio, "to_thread", _at_once)
    run_virtual(main())
    assert done == [f"ranks from {tmp_path / 'step-000004'}", "send 4", "deliver", "build at 4"]
    assert (killed[2:], [engine.actor for engine in engines]) == ([], actors)


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
