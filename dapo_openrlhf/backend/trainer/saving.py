"""Saves a rank's models, and resumes them from a checkpoint (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_openrlhf.backend.trainer.finite import refuse_moments_not_finite, refuse_not_finite
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.pipeline.checkpoint import TRAINER_FOLDER
from dapo_openrlhf.whole_file import put_in_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATE_TAG, CRITIC_TAG = "state", "critic"
"""Names of the policy's and the critic's state in a checkpoint."""


class Saving:
    """Saves and resumes policy and critic. Every rank must call every method."""

    def __init__(
        self,
        models: Sequence[ShardedModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        keep_critic: bool,
        peers: Peers,
    ) -> None:
        """``models``: the policy, and the critic if there is one. ``keep_critic``: whether the critic is saved too."""
        self._models = models
        self._policy, self._critic = models[0], models[1] if len(models) > 1 else None
        self._tokenizer = tokenizer
        self._keep_critic = keep_critic
        self._peers = peers

    def save(self, path: str) -> None:
        """Write a Hugging Face folder, with the critic's in its subfolder ``critic`` if that is to be kept.

        ``path`` appears only once it is complete.
        """
        unfinished = path + ".unfinished"
        refuse_not_finite(f"the model is not saved to {path}", self._models, self._peers)
        self._policy.save(unfinished, self._tokenizer)
        if self._critic is not None and self._keep_critic:
            self._critic.save(os.path.join(unfinished, "critic"), self._tokenizer)
        if self._peers.rank == 0:
            put_in_place(Path(unfinished), Path(path))

    def save_state(self, path: str) -> None:
        """Write the state that training resumes from, next to a saved model."""
        what = f"no checkpoint is made in {path}"
        refuse_not_finite(what, self._models, self._peers)
        refuse_moments_not_finite(what, self._models, self._peers)
        self._policy.save_state(os.path.join(path, TRAINER_FOLDER), STATE_TAG)
        if self._critic is not None:
            self._critic.save_state(os.path.join(path, TRAINER_FOLDER), CRITIC_TAG)

    def resume(self, checkpoint: str, updates_done: int) -> None:
        """Resume from a checkpoint after ``updates_done`` gradient steps.

        Raises ``RuntimeError`` if something is missing.
        """
        folder = os.path.join(checkpoint, TRAINER_FOLDER)
        if not self._policy.load_state(folder, STATE_TAG, updates_done=updates_done):
            raise RuntimeError(f"{folder} holds no state of the optimizer: it cannot be gone on from")
        if self._critic is not None and not self._critic.load_state(folder, CRITIC_TAG, updates_done=updates_done):
            raise RuntimeError(f"{folder} holds no critic: its run trained none; start from its model instead")
