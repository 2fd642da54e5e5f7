"""The engines' end of the weight sync through the object store: vLLM's weight-transfer API on machines without CUDA.

The trainer packs all parameters into one flat buffer, once per publication; every engine on a node reads the same
shared memory. One call per engine, whatever the number of parameters. Imported in engine processes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from dapo_openrlhf.backend.messages import WeightManifest
from dapo_openrlhf.backend.transfer.receivers import RECEIVERS
from dapo_openrlhf.backend.transfer.receivers.delivery import Delivery


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """All weights at once."""

    manifest: WeightManifest
    buffer: NDArray[np.uint8]


class ObjectStoreWeightTransferEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads a flat buffer of checkpoint-format weights into a vLLM model."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """No rendezvous."""

    def start_weight_update(self) -> None:
        """Give every layer its checkpoint-format parameters back: a CPU build packs and drops them at load."""
        initialize_layerwise_reload(self.model)
        self._delivery = Delivery(self.model, tied_head=self.model_config.hf_text_config.tie_word_embeddings)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the tensors. Overridden because the base class synchronises an accelerator that may not exist."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Hand each tensor, a view of the buffer, to the model's own loader."""
        self._delivery.load(tensors(update_info.manifest, update_info.buffer))

    def finish_weight_update(self) -> None:
        """Process layers as after loading a checkpoint. Raises :class:`delivery.IncompleteWeights`."""
        problem = self._delivery.problem()
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack()
        if problem is not None:
            raise problem

    def _repack(self) -> None:
        """Do what vLLM's reload (0.29) leaves out on a CPU, where layers compute with packed copies of their weights."""
        if self.device.type != "cpu":
            return
        tied = self.model_config.hf_text_config.tie_word_embeddings
        for layer in self.model.modules():
            match layer:
                case RoutedExperts():  # packed at the first load only: later ones were read as if they were
                    kernel: Any = layer.quant_method.moe_kernel
                    kernel.fused_experts.process_weights_after_loading(layer)
                case ParallelLMHead() if tied:  # without a parameter of its own, so nothing repacked it
                    layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held."""


def tensors(manifest: WeightManifest, buffer: NDArray[np.uint8]) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a flat buffer, as views."""
    flat = torch.from_numpy(buffer)
    for index, (name, dtype, shape) in enumerate(zip(manifest.names, manifest.dtypes, manifest.shapes, strict=True)):
        dtype_ = getattr(torch, dtype)
        size = dtype_.itemsize * int(np.prod(shape))
        start = manifest.offsets[index]
        yield name, flat[start : start + size].view(dtype_).view(shape)


def receive(core: Any, version: int, manifest: WeightManifest, buffer: NDArray[np.uint8]) -> int:
    """Have an engine core load a flat buffer; returns the checksum of what arrived, which is the manifest's."""
    checksum: int = xxhash.xxh3_64_intdigest(buffer.data)
    if checksum != manifest.checksum:
        raise ValueError(f"weights of version {version} arrived with checksum {checksum}, not {manifest.checksum}")
    core.collective_rpc("start_weight_update")
    core.collective_rpc("update_weights", kwargs={"update_info": {"manifest": manifest, "buffer": buffer}})
    core.collective_rpc("finish_weight_update")
    return checksum


WeightTransferEngineFactory.register_engine(RECEIVERS["object_store"].backend, ObjectStoreWeightTransferEngine)
