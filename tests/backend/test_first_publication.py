"""Weights that do not fit the engine's model end a run before anything is generated."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapo_openrlhf.backend.run import launch
from dapo_openrlhf.backend.run.new_trainer import NewTrainer
from dapo_openrlhf.pipeline.checkpoint import Checkpoints
from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.types import PolicyVersion


class Publisher:
    """Notes what is done with it; delivering ends with ``problem``."""

    def __init__(self, problem: str = "") -> None:
        self.done: list[str] = []
        self._problem = problem

    async def send(self, version: PolicyVersion) -> Publication:
        self.done.append(f"send {version}")
        return Publication(version=version, bytes=0, checksum=0)

    async def deliver(self, publication: Publication) -> None:
        self.done.append(f"deliver {publication.version}")
        if self._problem:
            raise RuntimeError(self._problem)


def train(publisher: Publisher, monkeypatch: pytest.MonkeyPatch, *, first_step: int = 0) -> None:
    """A training whose pipeline only says that it runs."""

    async def started(*arguments: Any, **settings: Any) -> Any:
        return SimpleNamespace(notes=(), heard=contextlib.nullcontext)

    async def opened(workers: Any) -> Any:
        return publisher

    async def run(stop: object) -> None:
        publisher.done.append("run")

    def build(*arguments: Any) -> Any:
        return SimpleNamespace(run=run, first_step=first_step, outcome=Outcome())

    monkeypatch.setattr(launch, "start_workers", started)
    inputs: Any = SimpleNamespace(first_step=first_step)
    config: Any = SimpleNamespace(train=SimpleNamespace(grace_seconds=1.0, max_restarts=0))
    checkpoints, log = Checkpoints(Path("none"), max_num=1), EventLog(None, clock=lambda: 0.0)
    source_of = functools.partial(
        NewTrainer, config=config, inputs=inputs, checkpoints=checkpoints, open_publisher=opened, build=build, say=print
    )
    asyncio.run(launch._train(config, inputs, log, print, source_of))


def test_what_engines_begin_with_is_published_once_before_the_pipeline_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher()
    train(publisher, monkeypatch, first_step=7)
    assert publisher.done == ["send 7", "deliver 7", "run"]


def test_weights_that_do_not_fit_end_the_run_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(problem="the weights as published do not fit the engine's model")
    with pytest.raises(RuntimeError, match="do not fit"):
        train(publisher, monkeypatch)
    assert publisher.done == ["send 0", "deliver 0"]
