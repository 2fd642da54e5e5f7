"""One rank of the trainer as Ray and OpenRLHF know it: it meets the others, fetches tokens, and has the rest done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
from dapo_openrlhf.backend.messages import Agreement, GroupTokens, StagedWeights, WeightLayout, WeightManifest
from dapo_openrlhf.backend.openrlhf_bases import policy_actor
from dapo_openrlhf.backend.trainer.reports import RankReady, StepReport
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import Beginning, TrainSettings
from dapo_openrlhf.pipeline.batch import RankPlan

if TYPE_CHECKING:
    from dapo_openrlhf.backend.trainer.loading import LoadedRank


class PolicyActor(policy_actor()):  # type: ignore[misc]  # see openrlhf_bases
    """OpenRLHF's policy actor with a step of its own.

    What stays OpenRLHF's: rendezvous, DeepSpeed set-up, optimizer and schedule, checkpoint writing. What is replaced: the
    replay buffer and the training loop. A rollout step is one call per rank, which fetches the tokens it needs from the
    object store itself. What a rank does with its models is in ``rank.py``, which knows nothing of Ray. The controller
    imports this file for the methods' names, so torch and all that needs it comes with :meth:`start`.
    """

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        super().__init__(world_size, rank, master_addr, master_port)
        self._spans = Spans(f"trainer {rank}")
        self._loaded: LoadedRank | None = None

    @property
    def loaded(self) -> LoadedRank:
        """The rank's models and what works with them, after :meth:`start`."""
        assert self._loaded is not None, "start has not been called"
        return self._loaded

    def get_master_addr_port(self) -> tuple[str, int]:
        """Where the ranks meet, chosen by rank 0."""
        address: tuple[str, int] = super().get_master_addr_port()
        return address

    def start(
        self,
        *,
        openrlhf_settings: Mapping[str, Any],
        device: Device,
        settings: TrainSettings,
        beginning: Beginning,
    ) -> RankReady:
        """Load the models and set up DeepSpeed. Blocks until all ranks have."""
        stand_in_for_cuda()
        import torch

        from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
        from dapo_openrlhf.backend.trainer.loading import load_rank
        from dapo_openrlhf.backend.trainer.strategy import Strategy

        torch.set_num_threads(device.threads)
        strategy = Strategy(openrlhf_namespace(openrlhf_settings), device=device)
        self._setup_distributed(strategy)
        self._loaded = load_rank(strategy, settings, beginning, spans=self._spans)
        return self._loaded.ready

    def train(self, plan: RankPlan, tokens: Sequence[ray.ObjectRef]) -> StepReport:
        """All updates of one rollout step. ``tokens`` are this rank's groups, in the order of ``plan.groups``."""
        with self._spans.span("fetch"):
            fetched: dict[int, GroupTokens] = dict(zip(plan.groups, ray.get(list(tokens)), strict=True))
        return self.loaded.rank.train(plan, fetched)

    def compare(self, engines: Sequence[Sequence[GroupTokens]]) -> Agreement:
        """How far the log-probs are from the model's own and the engines'. Every rank must be asked."""
        return self.loaded.comparison.agreement(engines)

    def where_packed_differs(self, groups: Sequence[GroupTokens]) -> str:
        """From where on packed sequences come out otherwise. Every rank must be asked."""
        return self.loaded.comparison.where_packed_differs(groups)

    def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint, with the critic's in its folder ``critic`` if that is to be kept.

        ``path`` appears only once it is whole. Every rank must call it.
        """
        with self._spans.span("save"):
            self.loaded.saving.save(path)

    def save_state(self, path: str) -> None:
        """Write DeepSpeed's checkpoints beside a saved model. Every rank must call it."""
        with self._spans.span("save"):
            self.loaded.saving.save_state(path)

    # ------------------------------------------------------------------ weights out

    def export_weights(self) -> tuple[WeightManifest | None, NDArray[np.uint8] | None]:
        """All parameters in one flat buffer of bytes. Every rank must call it; rank 0 returns something."""
        with self._spans.span("export_weights"):
            return self.loaded.weights.export()

    def weight_layout(self) -> WeightLayout:
        """Which tensors a publication consists of, as the model's checkpoint has them."""
        return self.loaded.weights.layout

    def transfer_address(self) -> tuple[str, int]:
        """A free port of this rank's machine, for engines to meet it."""
        return self._master_addr, self._get_free_port()

    def open_nccl(self, address: str, port: int, world_size: int) -> None:
        """Meet the engines' workers, on rank 0. Blocks until all have joined."""
        self.loaded.weights.open_nccl(address, port, world_size)

    def open_ipc(self) -> None:
        """Get ready to show the weights to the engine on this rank's GPU."""
        self.loaded.weights.open_ipc()

    def broadcast_weights(self) -> int | None:
        """Send all parameters to the engines. Every rank must call it; rank 0 returns their checksum."""
        with self._spans.span("export_weights"):
            return self.loaded.weights.broadcast()

    def stage_weights(self) -> StagedWeights:
        """Copy all parameters aside for the engine on this rank's GPU. Every rank must call it."""
        with self._spans.span("export_weights"):
            return self.loaded.weights.stage()
