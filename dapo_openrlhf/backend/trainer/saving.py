"""Saves a rank's models, and resumes them from a checkpoint (torch; runs inside the trainer's ranks).

A checkpoint is made in two phases. :meth:`Saving.snapshot` copies everything to host memory, in step with the other
ranks; :meth:`Saving.write_snapshot` writes the copies, each rank by itself, while training goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import Tensor

from dapo_openrlhf.backend.trainer.average import Average
from dapo_openrlhf.backend.trainer.finite import refuse_not_finite, refuse_tensors_not_finite
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.backend.trainer.state_tree import HostCopies, Tree, read_tree, tensors_of, write_tree
from dapo_openrlhf.pipeline.checkpoint import TRAINER_FOLDER
from dapo_openrlhf.whole_file import put_in_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATE_TAG, CRITIC_TAG, AVERAGE_TAG = "state", "critic", "ema"
"""Names of the policy's, the critic's and the average's state in a checkpoint."""

CRITIC_FOLDER, AVERAGE_FOLDER = "critic", "ema"
"""Names of the folders in a saved model with the critic's Hugging Face folder, and with the policy's of averaged weights."""

ABSENT = {
    STATE_TAG: "holds no state of the optimizer: it cannot be gone on from",
    CRITIC_TAG: "holds no critic: its run trained none; start from its model instead",
    AVERAGE_TAG: "holds no average of the weights: its run kept none; use train.enable_ema false",
}
"""What is said of a checkpoint without a state, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """This rank's part of a checkpoint, in host memory."""

    path: str
    """The checkpoint's folder."""
    models: Mapping[str, Mapping[str, Tensor]]
    """Whole tensors of the models, by the folder below ``path``; none except on rank 0."""
    states: Mapping[str, Tree]
    """States of the optimizers, by their tags."""


class NotWritten(RuntimeError):
    """Files could not be written; the message names their folder and the cause."""


class Saving:
    """Saves and resumes policy and critic. Every rank must call every method."""

    def __init__(
        self,
        models: Sequence[ShardedModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        keep_critic: bool,
        peers: Peers,
        average: Average | None = None,
    ) -> None:
        """``models``: the policy, and the critic if there is one. ``keep_critic``: whether the critic is saved too.

        ``average``: of the policy's weights, if there is one.
        """
        self._models = dict(zip((STATE_TAG, CRITIC_TAG), models, strict=False))
        self._average = average
        self._folders: dict[str, ShardedModel | Average] = dict(
            zip(("", CRITIC_FOLDER) if keep_critic else ("",), models, strict=False)
        )
        if average is not None:
            self._folders[AVERAGE_FOLDER] = average
        self._tokenizer = tokenizer
        self._peers = peers
        self._copies = HostCopies()
        self._taken: Snapshot | None = None
        self._writing = threading.Lock()

    def save(self, path: str) -> None:
        """Write a Hugging Face folder, with the critic's in its subfolder ``critic`` if that is to be kept.

        ``path`` appears only once it is complete.
        """
        unfinished = path + ".unfinished"
        refuse_not_finite(f"the model is not saved to {path}", list(self._models.values()), self._peers)
        copies = self._whole(HostCopies())
        if self._peers.rank == 0:
            with _named(path):
                self._write_models(copies, unfinished)
                put_in_place(Path(unfinished), Path(path))

    def snapshot(self, path: str) -> None:
        """Copy what a checkpoint in the folder ``path`` consists of; once this returns, training may go on.

        The copy takes as much host memory as the files that :meth:`write_snapshot` writes on this rank; the next one goes
        into the same memory, so that one must have been written.
        """
        assert not self._writing.locked(), "the snapshot before is being written"
        refuse_not_finite(f"no checkpoint is made in {path}", list(self._models.values()), self._peers)
        self._taken = Snapshot(
            path=path,
            models=self._whole(self._copies),
            states={tag: self._copies.copy(state, f"state {tag}") for tag, state in self._states().items()},
        )

    def write_snapshot(self) -> None:
        """Write the newest snapshot and forget it. Other threads may train meanwhile; not a collective call.

        Raises :class:`NotWritten`, and ``NotFinite`` for a state that holds NaN or infinity.
        """
        taken, self._taken = self._taken, None
        assert taken is not None, "there is no snapshot to write"
        with self._writing, _named(taken.path):
            for state in taken.states.values():
                refuse_tensors_not_finite(f"no checkpoint is made in {taken.path}", tensors_of(state))
            for tag, state in taken.states.items():
                write_tree(state, self._file(taken.path, tag))
            if self._peers.rank == 0:
                self._write_models(taken.models, taken.path)

    def resume(self, checkpoint: str, updates_done: int) -> None:
        """Resume from a checkpoint after ``updates_done`` gradient steps.

        Raises ``RuntimeError`` if something is missing, or was saved by another number of ranks.
        """
        for tag, model in self._models.items():
            model.load_state(self._read(checkpoint, tag), updates_done=updates_done)
        if self._average is not None:
            self._average.load_state(self._read(checkpoint, AVERAGE_TAG))

    def _states(self) -> dict[str, Tree]:
        """This rank's parts of what a checkpoint resumes from, not copied."""
        states = {tag: model.state() for tag, model in self._models.items()}
        return states if self._average is None else {**states, AVERAGE_TAG: self._average.state()}

    def _read(self, checkpoint: str, tag: str) -> Tree:
        file = self._file(checkpoint, tag)
        ranks = len(list(file.parent.glob("rank-*.json")))
        if ranks == 0:
            raise RuntimeError(f"{checkpoint} {ABSENT[tag]}")
        if ranks != self._peers.count:
            raise RuntimeError(
                f"{file.parent} holds the state of {ranks} trainer ranks, and this run has {self._peers.count}: each "
                f"resumes its own part; use {ranks} (actor.num_nodes x actor.num_gpus_per_node)"
            )
        return read_tree(file)

    def _file(self, checkpoint: str, tag: str) -> Path:
        """Path of this rank's part of a state, without suffix."""
        return Path(checkpoint) / TRAINER_FOLDER / tag / f"rank-{self._peers.rank}"

    def _whole(self, copies: HostCopies) -> Mapping[str, Mapping[str, Tensor]]:
        own = copies if self._peers.rank == 0 else None
        return {folder: model.copy_whole(own, f"model {folder}") for folder, model in self._folders.items()}

    def _write_models(self, copies: Mapping[str, Mapping[str, Tensor]], path: str) -> None:
        for folder, model in self._folders.items():
            model.write_whole(copies[folder], os.path.join(path, folder), self._tokenizer)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Name the folder in the errors of safetensors, which say neither file nor folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise NotWritten(f"{path} cannot be written: {type(error).__name__}: {error}") from error
