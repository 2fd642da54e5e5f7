"""What receivers on GPUs share (imported in vLLM's workers only, including those in processes of their own).

It adds to vLLM's engine a checksum of what arrived, computed where it is passed to the model, a check that the model
took all of it, and tolerance: vLLM 0.26 expects the packing parameters with every update, 0.29 once, and neither
accepts parameters that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine

from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.receivers.delivery import Delivery


class _WatchedModel:
    """Stands in for a weight-transfer engine's model, to checksum the tensors and to track their delivery."""

    def __init__(self, checksum: Checksum, delivery: Delivery) -> None:
        self._checksum = checksum
        self._delivery = delivery

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        named = list(weights)
        for name, tensor in named:
            self._checksum.add(name, tensor)
        self._delivery.load(named)


class Checked(WeightTransferEngine[Any, Any]):
    """Adds checksum and completeness check to one of vLLM's engines, which comes after it among a class's bases."""

    _checksum: Checksum
    _delivery: Delivery

    def parse_init_info(self, init_dict: dict[str, Any]) -> Any:
        return super().parse_init_info(_known(self.init_info_cls, init_dict))

    def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
        return super().parse_update_info(_known(self.update_info_cls, update_dict))

    def start_weight_update(self) -> None:
        self._checksum = Checksum()
        super().start_weight_update()  # type: ignore[safe-super]  # calls the base that comes after this one
        self._delivery = Delivery(self.model, tied_head=self.model_config.hf_text_config.tie_word_embeddings)

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _WatchedModel(self._checksum, self._delivery)  # type: ignore[assignment]  # has the method needed
        try:
            super().receive_weights(update_info)  # type: ignore[safe-super]  # calls the same base
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        """Process the received weights. Raises :class:`delivery.IncompleteWeights`."""
        problem = self._delivery.problem()
        super().finish_weight_update()  # type: ignore[safe-super]  # calls the same base
        if problem is not None:
            raise problem

    def received_checksum(self) -> int:
        """Checksum of everything received since ``start_weight_update``; the update must be finished."""
        return self._checksum.value()


class CheckedWorker:
    """A mixin for vLLM's worker.

    vLLM gets the name of a subclass, whose module then registers its engine in the worker's process.
    """

    weight_transfer_engine: Checked

    def received_checksum(self) -> int:
        """Checksum of the weights that this worker received last."""
        return self.weight_transfer_engine.received_checksum()


def _known(message: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(message)}
    return {name: value for name, value in values.items() if name in names}


def receive(core: Any, update_info: Mapping[str, Any], entering: Callable[[str], None]) -> int:
    """Have an engine core's workers take one publication; returns the checksum on which they agree.

    ``entering`` is told each phase before it begins. There are three calls and one query, whatever the number of
    parameters.
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
