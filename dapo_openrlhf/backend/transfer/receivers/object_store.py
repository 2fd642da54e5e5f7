"""The engines' end of the weight sync through the object store: vLLM's weight-transfer API on machines without CUDA.

The trainer packs all parameters into one flat buffer, once per publication; every engine on a node reads the same
shared memory. There is one call per engine, whatever the number of parameters. Imported in engine processes only.
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
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from dapo_openrlhf.backend.messages import WeightManifest
from dapo_openrlhf.backend.transfer.receivers import RECEIVERS
from dapo_openrlhf.backend.transfer.receivers.delivery import Delivery
from dapo_openrlhf.backend.transfer.receivers.repacking import repack


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Empty, because nothing has to be agreed on beforehand."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """All weights of a publication."""

    manifest: WeightManifest
    buffer: NDArray[np.uint8]


class ObjectStoreWeightTransferEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads a flat buffer of checkpoint-format weights into a vLLM model."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Do nothing, because there is no rendezvous."""

    def start_weight_update(self) -> None:
        """Restore every layer's parameters in checkpoint format, which a CPU build packs and drops at load."""
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
        if self.device.type == "cpu":
            repack(self.model, self.model_config)
        if problem is not None:
            raise problem

    def shutdown(self) -> None:
        """Do nothing, because no resources are held."""


def tensors(manifest: WeightManifest, buffer: NDArray[np.uint8]) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a flat buffer, as views."""
    flat = torch.from_numpy(buffer)
    for index, (name, dtype, shape) in enumerate(zip(manifest.names, manifest.dtypes, manifest.shapes, strict=True)):
        dtype_ = getattr(torch, dtype)
        size = dtype_.itemsize * int(np.prod(shape))
        start = manifest.offsets[index]
        yield name, flat[start : start + size].view(dtype_).view(shape)


def receive(core: Any, version: int, manifest: WeightManifest, buffer: NDArray[np.uint8]) -> int:
    """Have an engine core load a flat buffer; returns the checksum of what arrived, which equals the manifest's."""
    checksum: int = xxhash.xxh3_64_intdigest(buffer.data)
    if checksum != manifest.checksum:
        raise ValueError(f"weights of version {version} arrived with checksum {checksum}, not {manifest.checksum}")
    core.collective_rpc("start_weight_update")
    core.collective_rpc("update_weights", kwargs={"update_info": {"manifest": manifest, "buffer": buffer}})
    core.collective_rpc("finish_weight_update")
    return checksum


WeightTransferEngineFactory.register_engine(RECEIVERS["object_store"].backend, ObjectStoreWeightTransferEngine)
