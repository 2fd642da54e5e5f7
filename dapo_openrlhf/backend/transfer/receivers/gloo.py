"""The engines' end of the weight sync by gloo, on a CPU: the same as by NCCL, with another communicator."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from dapo_openrlhf.backend.transfer.gloo import GlooGroup
from dapo_openrlhf.backend.transfer.receivers import RECEIVERS
from dapo_openrlhf.backend.transfer.receivers.checked import Checked, CheckedWorker
from dapo_openrlhf.backend.transfer.receivers.repacking import repack


class CheckedGlooEngine(Checked, NCCLWeightTransferEngine):
    """vLLM's receiver of a broadcast, with the checks of :class:`Checked`."""

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join the group, and agree on how weights are packed."""
        self.packed = init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self.packed_num_buffers = init_info.packed_num_buffers
        group: Any = GlooGroup(
            address=init_info.master_address,
            port=init_info.master_port,
            rank=init_info.rank_offset + self.parallel_config.rank,
            world_size=init_info.world_size,
        )
        self.model_update_group = group

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the tensors. Overridden because the base class synchronises an accelerator that does not exist."""
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        """Process the received weights. Raises :class:`delivery.IncompleteWeights`."""
        try:
            super().finish_weight_update()
        finally:
            repack(self.model, self.model_config)


class GlooWorker(CheckedWorker):
    """A vLLM worker that receives weights by gloo."""


WeightTransferEngineFactory.register_engine(RECEIVERS["gloo"].backend, CheckedGlooEngine)
