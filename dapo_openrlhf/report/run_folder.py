"""The folder of one run and the names of the files in it (standard library only)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dapo_openrlhf.report.run_lock import LOCK_FILE
from dapo_openrlhf.whole_file import REMEDIES, Unwritable, remove_unfinished, whole_file, write_whole

LATEST = "latest"
EARLIER = "earlier"
READ_BYTES = 1 << 16
PROBE_BYTES = 1 << 20
"""A file system without room for this many bytes counts as full."""


def run_called(name: Path) -> Path:
    """The folder that a user means by ``name``: ``latest`` alone stands for ``runs/latest``."""
    return Path("runs") / LATEST if name == Path(LATEST) and not name.exists() else name


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run's folder; the files in it appear as the run writes them."""

    path: Path
    """Path of the folder: ``<parent>/<name>``, or that with ``-2``, ``-3``, ... appended."""
    latest_before: str | None = None
    """What ``latest`` pointed to before a new folder was made; None if to nothing."""
    set_aside: Path | None = None
    """Folder with what an earlier start has left, which :meth:`begin_anew` has made."""
    alone: bool = False
    """Whether the parent folder was made for it."""

    @classmethod
    def create(cls, parent: Path, name: str) -> Self:
        """Make a new folder ``name`` in ``parent``, numbered if it exists, and point ``parent/latest`` to it.

        Two runs that start at once get two folders; ``latest`` then points to either of them, and never is missing.
        """
        if name in ("", ".", "..", LATEST) or Path(name).name != name:
            raise ValueError(f"run name {name!r}: must be the plain name of a folder, and not {LATEST!r}")
        alone, before = not parent.exists(), parent / LATEST
        parent.mkdir(parents=True, exist_ok=True)
        folder = cls(
            path=_make_numbered(parent, name),
            latest_before=os.readlink(before) if before.is_symlink() else None,
            alone=alone,
        )
        _point_latest(parent, folder.path.name)
        return folder

    def discard(self) -> None:
        """Remove the new folder of a run that was refused, and let ``latest`` point where it did."""
        link = self.path.parent / LATEST
        if link.is_symlink() and os.readlink(link) == self.path.name:
            link.unlink() if self.latest_before is None else _point_latest(self.path.parent, self.latest_before)
        shutil.rmtree(self.path, ignore_errors=True)
        if self.alone:
            with contextlib.suppress(OSError):  # another run has begun there meanwhile
                self.path.parent.rmdir()

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open the folder of an earlier run to resume in it; ``latest`` points to it again."""
        folder = cls(path=path.resolve())
        for file in (folder.events, folder.metrics, folder.samples):
            if file.is_file():
                _drop_unfinished_line(file)
        _point_latest(folder.path.parent, folder.path.name)
        return folder

    @classmethod
    def begin_anew(cls, path: Path) -> Self:
        """Empty the folder of a run that ended: what is in it moves to ``earlier``, ``earlier-2``, ... below it.

        ``latest`` points to the folder again.
        """
        path = path.resolve()
        remove_unfinished(path)
        left = [entry for entry in path.iterdir() if entry.name != LOCK_FILE and not _is_earlier(entry.name)]
        place = _make_numbered(path, EARLIER)
        for entry in left:
            entry.rename(place / entry.name)
        _point_latest(path.parent, path.name)
        return cls(path=path, set_aside=place)

    @property
    def config(self) -> Path:
        """File with the resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        """File with the event log, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def summary(self) -> Path:
        """File that :meth:`write_summary` writes."""
        return self.path / "summary.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        """File with a few responses of every rollout step, one JSON object per line."""
        return self.path / "samples.jsonl"

    @property
    def wandb(self) -> Path:
        """Folder of what Weights & Biases writes."""
        return self.path / "wandb"

    @property
    def picture(self) -> Path:
        """Picture of the run's curves, PNG."""
        return self.path / "curves.png"

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained model."""
        return self.path / "checkpoint"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def bad_batches(self) -> Path:
        """Folder of the batches of updates that were stopped: ``step-S-update-U`` with ``batch.json`` and ``rank-R.npz``."""
        return self.path / "bad_batch"

    @property
    def metrics(self) -> Path:
        """File with a row of numbers per rollout step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    def responses(self, step: int, key: str = "") -> Path:
        """File with every response of the evaluation after ``step`` steps, for ``dapo-openrlhf compare``; ``key``: the name
        of the set, empty for a single one without."""
        return self.path / "eval" / key / f"step-{step}.jsonl"

    def trouble(self, words: str) -> str | None:
        """What keeps files from being written here, with the remedy; None if nothing does.

        ``words`` are those of an error that a library or another process reported in its own way.
        """
        found = re.search(r"(?:Errno|os error) (\d+)", words)
        if found and int(found[1]) in REMEDIES:
            return str(Unwritable(self.checkpoints, int(found[1])))
        try:
            write_whole(self.path / "probe", bytes(PROBE_BYTES))
            (self.path / "probe").unlink()
        except Unwritable as error:
            return str(Unwritable(self.checkpoints, error.errno or errno.EIO))
        return None

    def write_summary(self, values: Mapping[str, object]) -> None:
        """Write ``summary.json``, with null for NaN and infinity."""
        write_whole(self.summary, json.dumps(_without_nan(values), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _drop_unfinished_line(file: Path) -> None:
    """Remove the partial line that a killed process may have left, since the next line would be appended to it."""
    with file.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - READ_BYTES)
            stream.seek(begin)
            newline = stream.read(end - begin).rfind(b"\n")
            if newline >= 0:
                stream.truncate(begin + newline + 1)
                return
            end = begin
        stream.truncate(0)


def _make_numbered(parent: Path, name: str) -> Path:
    """Create the first of ``name``, ``name-2``, ``name-3``, ... that does not exist."""
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the numbers do not end")


def _is_earlier(name: str) -> bool:
    return re.fullmatch(rf"{EARLIER}(-\d+)?", name) is not None


def _point_latest(parent: Path, name: str) -> None:
    with whole_file(parent / LATEST) as unfinished:
        unfinished.symlink_to(name, target_is_directory=True)


def _without_nan(value: object) -> object:
    """The value with null for NaN and infinity, for which JSON has no number."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _without_nan(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_without_nan(entry) for entry in value]
        case _:
            return value
