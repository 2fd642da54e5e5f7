"""Tracks what became of a publication in an engine's model (imported in vLLM's workers only).

vLLM's models take named tensors one by one. A name that a model does not know may be skipped silently, and a layer that
receives nothing keeps its old weights with a warning: the engine would sample from a policy that nobody trains. What
counts here is neither names nor what ``load_weights`` returns (some models return nothing) but the number of elements
that reached each parameter, as vLLM's own layerwise reload counts them
(``model_executor/model_loader/reload/layerwise.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import layerwise
from vllm.model_executor.model_loader.reload.meta import get_numel_loaded
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo

from dapo_openrlhf.backend.messages import IncompleteWeights
from dapo_openrlhf.backend.transfer.receivers.reloading import UNCOUNTED

SHOWN = 8
"""Number of names that an error message lists."""


class Delivery:
    """Tracks one publication, between vLLM's ``initialize_layerwise_reload`` and ``finalize_layerwise_reload``."""

    def __init__(self, model: Any, *, tied_head: bool) -> None:
        """``tied_head``: the output layer shares the embedding's weights, so nothing is published for it."""
        self._model = model
        self._tied_head = tied_head
        self._loads = 0
        self._ignored: list[str] = []
        # vLLM does not count the loads of these tensors; only their sizes are known.
        self._uncounted = {
            tensor.numel()
            for layer in model.modules()
            for name, tensor in layer.named_parameters(recurse=False)
            if name in UNCOUNTED
        }

    def load(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Pass tensors to the model's own ``load_weights``; called once for each piece of the publication."""
        ignored: list[str] = []
        ends: list[int] = []
        with self._counting():
            self._model.load_weights(self._watched(named, ignored, ends))
        collects_first = bool(ends) and self._loads > ends[0]
        if not collects_first:  # for a model that does, single tensors cannot be tracked
            self._ignored += ignored

    def _watched(
        self, named: Iterable[tuple[str, Tensor]], ignored: list[str], ends: list[int]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the same tensors, and note those that were not loaded anywhere before the next one was requested."""
        for name, tensor in named:
            before = self._loads
            yield name, tensor
            if self._loads == before and not (tensor.dim() == 1 and tensor.numel() in self._uncounted):
                ignored.append(name)
        ends.append(self._loads)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the loads into parameters, which all pass through this function of vLLM's."""
        module: Any = layerwise  # the module calls the function by its own name for it
        original = module.get_numel_loaded

        def counted(*arguments: Any) -> Any:
            self._loads += 1
            return original(*arguments)

        module.get_numel_loaded = counted
        try:
            yield
        finally:
            module.get_numel_loaded = original

    def problem(self) -> IncompleteWeights | None:
        """The error, or None, once everything has been loaded; must be called before the reload is finalized."""
        missing = list(self._missing())
        if not missing and not self._ignored:
            return None
        architecture = type(self._model).__name__
        lines = [f"the weights as published do not fit the engine's model {architecture}:"]
        if missing:
            lines.append(f"  {_listed(missing)} received no new weights, or not all, and would keep older ones")
        if self._ignored:
            lines.append(f"  {_listed(self._ignored)} as published went into none of its parameters")
        lines.append(
            "  transformers and vLLM name or shape this architecture's weights differently, so engine and trainer would be "
            "different policies; use a model of another architecture, or versions of both that agree"
        )
        return IncompleteWeights("\n".join(lines))

    def _missing(self) -> Iterator[str]:
        """Parameters of the model that the publication did not fill, with the number of elements that they received."""
        received: set[int] = set()
        lacking: list[tuple[str, Module, int]] = []
        for prefix, layer in self._model.named_modules():
            info = layerwise.get_layerwise_info(layer)
            for name, parameter in layer.named_parameters(recurse=False):
                elements, kept = _elements(layer, name, info)
                if name in UNCOUNTED or elements >= _expected(layer, parameter):
                    received.add(id(kept))
                else:
                    share = f"{elements:,} of {parameter.numel():,} elements"
                    lacking.append((f"{prefix}.{name} ({share})".lstrip("."), layer, id(kept)))
        for description, layer, kept in lacking:
            tied = kept in received or (self._tied_head and isinstance(layer, ParallelLMHead))
            if not tied:
                yield description


def _elements(layer: Module, name: str, info: LayerReloadingInfo) -> tuple[int, Any]:
    """Number of elements that a parameter received, and the tensor that the engine continues with."""
    parameter = getattr(layer, name)
    if not info.can_load():  # everything for this layer has arrived and has been processed
        return parameter.numel(), parameter
    kept = parameter if info.kernel_tensors is None else info.kernel_tensors[0].get(name, parameter)
    loader = layerwise._get_original_loader(parameter)
    return sum(get_numel_loaded(loader, args)[0] for target, args in info.loaded_weights if target == name), kept


def _expected(layer: Module, parameter: Tensor) -> int:
    """Number of elements that a checkpoint has for a parameter: all but vLLM's padding of vocabularies and experts."""
    if isinstance(layer, VocabParallelEmbedding):
        return parameter.numel() // parameter.shape[0] * layer.shard_indices.num_org_elements
    if isinstance(layer, RoutedExperts):
        sizes: Any = layer.moe_config  # vLLM has already filled in what may be None
        inner, own_inner = sizes.intermediate_size_per_partition, sizes.intermediate_size_per_partition_unpadded
        own: dict[int, int] = {sizes.hidden_dim: sizes.hidden_dim_unpadded, inner: own_inner, 2 * inner: 2 * own_inner}
        return parameter.shape[0] * math.prod(own.get(size, size) for size in parameter.shape[1:])
    return parameter.numel()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
