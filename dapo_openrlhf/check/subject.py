"""What is checked: a configuration, and the machines that it is to run on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dapo_openrlhf.backend.run.inputs import check_models, local_model, read_problems, read_prompts
from dapo_openrlhf.backend.run.model_files import ModelFiles, read_model_files
from dapo_openrlhf.backend.run.node_look import Look, asked_of, look
from dapo_openrlhf.check.machines import Machines
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.dataset.joined import JoinedSets
from dapo_openrlhf.dataset.store import PromptSet
from dapo_openrlhf.pipeline.resume_point import ResumePoint
from dapo_openrlhf.plan.shape import ModelShape

Value = TypeVar("Value")

SAMPLE_ROWS = 256
"""Number of rows of each prompt file that are rendered."""


class Once(Generic[Value]):
    """A value that several checks need, made by the first of them; the others wait for it, or hear the same error."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._value: Value | None = None
        self._error: ConfigError | None = None

    def __call__(self) -> Value:
        """The value. Raises the ``ConfigError`` that its making has raised."""
        with self._lock:
            if self._value is None and self._error is None:
                try:
                    self._value = self._make()
                except ConfigError as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A look at one machine."""

    address: str
    """Of a machine in a cluster; empty for this one."""
    found: Look | str
    """Or why it could not be looked at."""


class Subject:
    """A configuration, the machines it is to run on, and what is read only when a check needs it."""

    def __init__(self, config: Config, machines: Once[Machines], *, resume: ResumePoint | None = None) -> None:
        """``resume``: the checkpoint that the run goes on from, if it does."""
        self.config = config
        self.machines = machines
        self.resume = resume
        self.notes: list[str] = []
        """What was said while the prompts were read."""
        self.models: Once[list[str]] = Once(self._models)
        self.files: Once[ModelFiles] = Once(self._files)
        self.prompts: Once[JoinedSets] = Once(self._prompts)
        self.problems: Once[list[PromptSet]] = Once(self._problems)
        self.looks: Once[list[Looked]] = Once(self._looks)
        """At the machines that are there; none of machines that are only named."""

    @property
    def folder(self) -> Path:
        """The run's folder, or the one that it is to be made in."""
        return self.resume.run if self.resume else Path(self.config.run.dir)

    def _looks(self) -> list[Looked]:
        machines = self.machines()
        if machines.here:
            return [Looked(address="", found=look(asked_of(self.config, self.folder)))]
        each = machines.each
        return [Looked(address=one.address, found=one.look) for one in each if one.look is not None]

    def _models(self) -> list[str]:
        """What is to be said about models that are there, as far as a look at names and folders tells."""
        notes: list[str] = []
        check_models(self.config, self.resume.checkpoint if self.resume else None, notes.append, training=True)
        return notes

    def _files(self) -> ModelFiles:
        self.models()  # libraries ask an unreachable hub for minutes
        return read_model_files(
            local_model(self.config.actor.model_name_or_path),
            chat=self.config.data.apply_chat_template,
            trust_remote_code=self.config.actor.trust_remote_code,
            lora=self.config.ds.lora,
            balanced=self.config.actor.aux_loss_coef > 0,
        )

    def _prompts(self) -> JoinedSets:
        self.models()
        return read_prompts(self.config, self.notes.append, most=SAMPLE_ROWS)

    def _problems(self) -> list[PromptSet]:
        self.models()
        return read_problems(self.config, self.notes.append, most=SAMPLE_ROWS)

    def shape(self) -> ModelShape | None:
        """The model's shape; None for one that is not a dense decoder. Raises ``ConfigError`` for unusable files."""
        try:
            return ModelShape.of(dict(self.files().config))
        except (KeyError, TypeError, ZeroDivisionError):
            return None
