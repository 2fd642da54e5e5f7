"""vLLM's end of weight transfer between GPUs (imported in vLLM's workers only, also those that are processes of their own).

vLLM's ``nccl`` and ``ipc`` engines do the work; what is added is a checksum of what arrived, taken where it is handed to
the model, a look at whether the model took all of it, and tolerance: vLLM 0.26 wants the packing parameters with every update, 0.29 once, and neither accepts more
than it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.receivers.delivery import Delivery


class _Receiver:
    """Stands where a weight-transfer engine expects its model, counts in what passes and watches what becomes of it."""

    def __init__(self, checksum: Checksum, delivery: Delivery) -> None:
        self._checksum = checksum
        self._delivery = delivery

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        named = list(weights)
        for name, tensor in named:
            self._checksum.add(name, tensor)
        self._delivery.load(named)


class _Checked(WeightTransferEngine[Any, Any]):
    """Adds checksum and completeness to one of vLLM's engines."""

    _checksum: Checksum
    _delivery: Delivery

    def parse_init_info(self, init_dict: dict[str, Any]) -> Any:
        return super().parse_init_info(_known(self.init_info_cls, init_dict))

    def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
        return super().parse_update_info(_known(self.update_info_cls, update_dict))

    def start_weight_update(self) -> None:
        self._checksum = Checksum()
        super().start_weight_update()
        self._delivery = Delivery(self.model, tied_head=self.model_config.hf_text_config.tie_word_embeddings)

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _Receiver(self._checksum, self._delivery)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        """Process what was received. Raises :class:`delivery.IncompleteWeights`."""
        problem = self._delivery.problem()
        super().finish_weight_update()
        if problem is not None:
            raise problem

    def received_checksum(self) -> int:
        """Of everything since ``start_weight_update``; the update must be finished."""
        return self._checksum.value()


class CheckedNcclEngine(_Checked, NCCLWeightTransferEngine):
    """Receives a broadcast of the trainer's rank 0."""


class CheckedIpcEngine(_Checked, IPCWeightTransferEngine):
    """Reads the memory of the trainer rank on the same GPU."""


class WorkerExtension:
    """Mixed into vLLM's worker: naming it in the engine's arguments also makes workers import, so register, the above."""

    weight_transfer_engine: _Checked

    def received_checksum(self) -> int:
        """Checksum of the weights that this worker received last."""
        return self.weight_transfer_engine.received_checksum()


def _known(message: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(message)}
    return {name: value for name, value in values.items() if name in names}


def receive(core: Any, update_info: Mapping[str, Any], entering: Callable[[str], None]) -> int:
    """Have an engine core's workers take one publication; returns the checksum they agree on.

    ``entering`` is told each phase before it begins. Three calls and one question, whatever the number of parameters.
    """
    entering("preparing its layers")
    core.collective_rpc("start_weight_update")
    entering("receiving")
    core.collective_rpc("update_weights", kwargs={"update_info": dict(update_info)})
    entering("processing what it received")
    core.collective_rpc("finish_weight_update")
    checksums: list[int] = core.collective_rpc("received_checksum")
    if len(set(checksums)) != 1:
        raise RuntimeError(f"the engine's tensor-parallel workers received different weights: checksums {checksums}")
    return checksums[0]


WeightTransferEngineFactory.register_engine("checked_nccl", CheckedNcclEngine)
WeightTransferEngineFactory.register_engine("checked_ipc", CheckedIpcEngine)
