"""One rank of the trainer as an actor of Ray and OpenRLHF.

It meets the other ranks, fetches tokens, and delegates everything else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
from dapo_openrlhf.backend.messages import Agreement, GroupTokens, Meeting, StagedWeights, WeightLayout
from dapo_openrlhf.backend.openrlhf_bases import policy_actor
from dapo_openrlhf.backend.trainer.reports import RankReady, StepReport
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import Beginning, TrainSettings
from dapo_openrlhf.pipeline.batch import RankPlan

if TYPE_CHECKING:
    from dapo_openrlhf.backend.trainer.loading import LoadedRank


WATCH = "watch"
"""Concurrency group in which a rank says that it is alive."""

WATCH_THREADS = 4

WRITING = "writing"
"""Concurrency group of the call that writes a snapshot; calls in neither group share one thread."""


class PolicyActor(policy_actor()):  # type: ignore[misc]  # see openrlhf_bases
    """OpenRLHF's policy actor with a training step of its own.

    Kept from OpenRLHF: rendezvous, DeepSpeed set-up, optimizer and schedule. Replaced: the replay buffer, the training
    loop and checkpoints. A rollout step is one call per rank, and each rank fetches the tokens that
    it needs from the object store itself. What a rank does with its models is in ``rank.py``, which does not depend on
    Ray. The controller imports this file for the names of the methods, so torch and everything that needs it is
    imported only in :meth:`start`.
    """

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        super().__init__(world_size, rank, master_addr, master_port)
        self._spans = Spans(f"trainer {rank}")
        self._loaded: LoadedRank | None = None

    @property
    def loaded(self) -> LoadedRank:
        """The rank's models and the objects that work with them; available after :meth:`start`."""
        assert self._loaded is not None, "start has not been called"
        return self._loaded

    def alive(self, seconds: float) -> None:
        """Answer after ``seconds``, whatever else this rank does: called in :data:`WATCH`."""
        time.sleep(seconds)

    def get_master_addr_port(self) -> tuple[str, int]:
        """The address and port where the ranks meet, chosen by rank 0."""
        address: tuple[str, int] = super().get_master_addr_port()
        return address

    def import_packages(self) -> None:
        """Import what :meth:`start` needs, which takes many seconds and allocates nothing on a GPU."""
        from dapo_openrlhf.backend.trainer import loading, strategy  # noqa: F401

    def start(
        self,
        *,
        openrlhf_settings: Mapping[str, Any],
        device: Device,
        settings: TrainSettings,
        beginning: Beginning,
    ) -> RankReady:
        """Load the models and set up DeepSpeed. Blocks until all ranks have done so."""
        stand_in_for_cuda()
        import torch

        from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
        from dapo_openrlhf.backend.trainer.loading import load_rank
        from dapo_openrlhf.backend.trainer.strategy import Strategy

        strategy = Strategy(openrlhf_namespace(openrlhf_settings), device=device)
        torch.set_num_threads(strategy.threads)
        self._setup_distributed(strategy)
        self._loaded = load_rank(strategy, settings, beginning, spans=self._spans)
        return self._loaded.ready

    def train(self, plan: RankPlan, tokens: Sequence[ray.ObjectRef[GroupTokens]]) -> StepReport:
        """Run all updates of one rollout step.

        ``tokens`` are those of this rank's groups, in the order of ``plan.groups``.
        """
        with self._spans.span("fetch"):
            fetched: dict[int, GroupTokens] = dict(zip(plan.groups, ray.get(list(tokens)), strict=True))
        report = self.loaded.rank.train(plan, fetched)
        self.loaded.weights.version = plan.step + 1
        return report

    def compare(self, engines: Sequence[Sequence[GroupTokens]]) -> Agreement:
        """How far the log-probabilities are from the model's own and from the engines'. Every rank must call it."""
        return self.loaded.comparison.agreement(engines)

    def where_packed_differs(self, groups: Sequence[GroupTokens]) -> str:
        """The layers from which on packed sequences give different results. Every rank must call it."""
        return self.loaded.comparison.where_packed_differs(groups)

    def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint, with the critic's in its subfolder ``critic`` if that is to be kept.

        ``path`` appears only once it is complete. Every rank must call it.
        """
        with self._spans.span("save"):
            self.loaded.saving.save(path)

    def snapshot(self, path: str) -> None:
        """Copy what a checkpoint in the folder ``path`` consists of to host memory. Every rank must call it."""
        with self._spans.span("save"):
            self.loaded.saving.snapshot(path)

    @ray.method(concurrency_group=WRITING)
    def write_snapshot(self) -> None:
        """Write the newest snapshot, while this rank may train on. Every rank must call it."""
        self.loaded.saving.write_snapshot()

    # ------------------------------------------------------------------ weights out

    def export_weights(self) -> Iterator[NDArray[np.uint8] | StagedWeights]:
        """Yield all parameters in buckets, and then what they are; a streaming generator of Ray's.

        Every rank must call it; only rank 0 yields anything.
        """
        with self._spans.span("export_weights"):
            yield from self.loaded.weights.export()

    def weight_layout(self) -> WeightLayout:
        """The tensors that a publication consists of, in the form that they have in the model's checkpoint."""
        return self.loaded.weights.layout

    def join_transfer(self, meeting: Meeting, size: int) -> None:
        """Form a transfer group of ``size`` members as its sender. Blocks until all have joined."""
        self.loaded.weights.join(meeting, size)

    def leave_transfer(self) -> None:
        """Leave the transfer group, if there is one."""
        self.loaded.weights.leave()

    def send_weights(self) -> int | None:
        """Send all parameters to the engines of this rank's group, if it has one; returns their checksum.

        Every rank must call it.
        """
        with self._spans.span("export_weights"):
            return self.loaded.weights.send()


def rank_actor() -> Any:
    """:class:`PolicyActor` as an actor of Ray that writes a snapshot, and says that it is alive, beside its work."""
    groups = {WRITING: 1, WATCH: WATCH_THREADS}
    return ray.remote(concurrency_groups=groups)(PolicyActor)  # type: ignore[call-overload]  # not declared
