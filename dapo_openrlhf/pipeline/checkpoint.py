"""Checkpoints to resume a run from; each is either complete or absent (standard library)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.best import NONE, best_of, write_evaluation
from dapo_openrlhf.pipeline.manifest import MANIFEST_FILE, problems, write_manifest
from dapo_openrlhf.pipeline.prompts import PromptState
from dapo_openrlhf.whole_file import UNFINISHED, put_in_place, remove_whole

STATE_FILE = "run_state.json"
SETTINGS_FILE = "run_config.yaml"
"""Name of the file in a checkpoint with every setting of the run that made it."""

MOST_NAMED = 3
"""Most damaged files that a message names."""

NAME = re.compile(r"step-\d{6,}")
"""Names of the folders of complete checkpoints."""

TRAINER_FOLDER = "trainer"
"""Name of the folder in a checkpoint with the optimizer, its schedule and the full-precision weights; the model lies
beside it."""


PICKLES = "*/mp_rank_*_model_states.pt"
"""Files of DeepSpeed's own checkpoints below :data:`TRAINER_FOLDER`."""

WITHOUT_PICKLES = "0.2.0"
"""First version whose checkpoints hold none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The controller's part of a checkpoint."""

    step: int
    """Number of rollout steps done; also the policy version of the checkpoint's weights."""
    prompts: PromptState

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a checkpoint's state. Raises :class:`ConfigError` for a folder that is not a checkpoint."""
        try:
            values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            return cls(step=values["step"], prompts=PromptState.read(values["prompts"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder} is not a checkpoint to resume from: {error}") from error


def damage(folder: Path) -> list[str]:
    """The problems of a checkpoint, one line each; empty for a good one.

    One of an earlier version, whose optimizer's state is in pickles, counts as damaged: pickles are not read, since
    reading one runs whatever code is in it.
    """
    if any((folder / TRAINER_FOLDER).glob(PICKLES)):
        return [
            f"{TRAINER_FOLDER} holds pickles, as versions before {WITHOUT_PICKLES} wrote them, and they are not read: go on "
            f"with the version that made it, or start a new run from its model (actor.model_name_or_path {folder})"
        ]
    if wrong := problems(folder):
        return wrong
    try:
        RunState.read(folder)
    except ConfigError as error:
        return [str(error)]
    return []


class Checkpoints:
    """A run's checkpoint folders, ``step-000010`` and so on, of which the newest ``max_num`` and the best are kept."""

    def __init__(
        self, folder: Path, *, max_num: int, settings: str = "", best_metric: str = "", first_step: int = 0
    ) -> None:
        """``settings``: the configuration that new checkpoints are made with, as YAML.

        ``best_metric``: see :attr:`CkptSection.best_metric_key`. ``first_step``: the step at which the run is resumed.
        """
        self._folder = folder
        self._max_num = max_num
        self._settings = settings
        self._best_metric = best_metric
        self._own = {first_step}
        """Steps whose checkpoints hold the weights of this run; others may be left from before a resume."""
        self._evaluations: dict[int, Mapping[str, float]] = {}

    def begin(self, step: int) -> str:
        """Make an empty folder for the trainer to write into; absolute, as trainer ranks may run elsewhere."""
        for remains in self._folder.glob(f"{UNFINISHED}*"):  # left by a run that was killed
            shutil.rmtree(remains)
        self._evaluations = {done: found for done, found in self._evaluations.items() if done <= step}
        path = self._unfinished(step)
        path.mkdir(parents=True)
        return str(path.resolve())

    def discard(self, step: int) -> None:
        """Remove a folder that could not be written; what cannot be removed now, :meth:`begin` removes later."""
        with contextlib.suppress(OSError):
            remove_whole(self._unfinished(step))  # not file by file: a thread may still be completing it

    async def complete(self, state: RunState) -> str:
        """Call :meth:`finish` in a thread, since all files are read once more."""
        return await asyncio.to_thread(self.finish, state)

    def finish(self, state: RunState) -> str:
        """Complete a folder that the trainer has written, name it, and remove the oldest ones. Returns its path.

        All its files are read once more, for the manifest, so this may take seconds.
        """
        unfinished, path = self._unfinished(state.step), self._path(state.step)
        (unfinished / SETTINGS_FILE).write_text(self._settings, encoding="utf-8")
        (unfinished / STATE_FILE).write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
        write_manifest(unfinished)
        put_in_place(unfinished, path)  # an existing one was made before a resume
        self._own.add(state.step)
        self._note(state.step)
        finished, best = self.finished(), self.best()
        for old in finished[: -self._max_num]:
            if old != best:
                remove_whole(old)
        return str(path)

    def evaluated(self, step: int, estimates: Mapping[str, float]) -> None:
        """Take note of what was measured of the weights after ``step`` steps, before or after their checkpoint is made."""
        self._evaluations[step] = estimates
        if step in self._own:
            self._note(step)

    def best(self) -> Path | None:
        """The complete checkpoint that was measured to be the best; None if none was, or if none is to be kept."""
        return None if self._best_metric == NONE else best_of(self.finished(), self._best_metric)

    def _note(self, step: int) -> None:
        """Put an evaluation into its checkpoint, if there are both."""
        if step in self._evaluations and self._path(step).is_dir():
            write_evaluation(self._path(step), self._evaluations[step])

    def finished(self) -> list[Path]:
        """The complete checkpoints, oldest first; folders with other names, such as a user's copies, are none of them."""
        numbered = {
            int(path.name.removeprefix("step-")): path
            for path in self._folder.glob("step-*")
            if NAME.fullmatch(path.name) and ((path / STATE_FILE).exists() or (path / MANIFEST_FILE).exists())
        }
        return [path for _, path in sorted(numbered.items())]

    def newest_good(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose files are all unchanged since they were written; None if there is none.

        ``say`` gets a message about each checkpoint that is skipped, with what is wrong with it.
        """
        for path in reversed(self.finished()):
            wrong = damage(path)
            if not wrong:
                return path
            say(f"warning: the checkpoint {path} is damaged and is passed over: {'; '.join(wrong[:MOST_NAMED])}")
        return None

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"

    def _unfinished(self, step: int) -> Path:
        return self._folder / f"{UNFINISHED}{step:06d}"
