"""OpenRLHF's extension of vLLM's workers on a CPU (imported in vLLM's engine core only)."""

from __future__ import annotations

from typing import Any

from dapo_openrlhf.bench.stock.on_cpu import install

install()

import torch  # noqa: E402  the remedies come first
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap  # noqa: E402


class CpuWorkerWrap(WorkerWrap):  # type: ignore[misc]  # openrlhf has no types
    """Receives weights tensor by tensor like the stock class, but loads them once the last one has arrived.

    vLLM packs linear weights when it loads them on a CPU and drops the originals, so a single tensor cannot be
    replaced. The trainer marks its last tensor (``empty_cache``). The model's head must not be tied to its embeddings,
    since it would not be packed again.
    """

    def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> None:
        """Receive one tensor from the trainer's rank 0."""
        assert dtype == self.model_config.dtype, f"{name} is {dtype}, in the engine {self.model_config.dtype}"
        weight = torch.empty(shape, dtype=dtype)
        self._model_update_group.broadcast(weight, src=0)
        received = self.__dict__.setdefault("_received", [])
        received.append((name, weight))
        if empty_cache:
            self.model_runner.reload_weights(weights_iterator=iter(received))
            received.clear()
