"""Loads one publication into a vLLM model, bucket by bucket (imported in vLLM's workers only).

vLLM's layerwise reload (``model_executor/model_loader/reload``, 0.29) takes a model's layers back to the form of a
checkpoint, collects each layer's tensors, and processes a layer into its old storage as soon as it is complete.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.transfer.buckets import Unpacking
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.receivers.delivery import Delivery
from dapo_openrlhf.backend.transfer.receivers.reloading import accepting_parts
from dapo_openrlhf.backend.transfer.receivers.repacking import repack


class Loading:
    """One publication on its way into a model, which cannot compute until :meth:`finish` has returned.

    If that does not come to pass, another publication may be begun in its place.
    """

    def __init__(self, model: Any, model_config: Any, layout: WeightLayout) -> None:
        """Take the model's layers back to the form of a checkpoint."""
        self._model = model
        self._model_config = model_config
        self._checksum = Checksum()
        self._unpacking = Unpacking(layout)
        _forget_what_was_begun(model)
        initialize_layerwise_reload(model)
        self._delivery = Delivery(model, tied_head=model_config.hf_text_config.tie_word_embeddings)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of each bucket in bytes."""
        return self._unpacking.sizes

    def take(self, bucket: Tensor) -> None:
        """Load the next bucket. Its memory must not change until :meth:`finish`, since layers keep views of it."""
        self._checksum.add(bucket)
        with accepting_parts():
            self._delivery.load(self._unpacking.take(bucket))

    def finish(self) -> int:
        """Process what is left, and return the checksum of what was loaded. Raises ``IncompleteWeights``."""
        assert self._unpacking.complete, "a publication ended before its last bucket"
        problem = self._delivery.problem()
        finalize_layerwise_reload(self._model, self._model_config)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # the next step must use what is still being copied
        else:
            repack(self._model, self._model_config)
        if problem is not None:
            raise problem
        return self._checksum.value()


def _forget_what_was_begun(model: Any) -> None:
    """Drop the tensors of a publication that was given up: the reload would take them for parts of the next one."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0
