"""Names and shapes of a model's tensors in its checkpoint (runs in every trainer rank).

transformers keeps some models in another form than their checkpoints: Mixtral's modules hold all experts of a layer in
one ``mlp.experts.gate_up_proj``, its checkpoints two matrices per expert under ``block_sparse_moe.experts.0.w1`` and
``.w3``. Loading converts, ``save_pretrained`` reverts, and engines know only the checkpoint's form. The reversal is
transformers' own (``core_model_loading.revert_weight_conversion``, 5.15), divided into units so that a model too large
for any machine to hold as a whole can be streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from dapo_openrlhf.backend.trainer.stored import stored_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Tensors of a model that together become tensors of its checkpoint.

    Most units are a single tensor, of which at most the name changes.
    """

    sources: tuple[str, ...]
    """Names of the tensors in the model."""
    name: str
    """Name in the checkpoint; with a ``conversion``, the first of several names, as transformers writes it."""
    conversion: WeightConverter | None = None
    patterns: tuple[str, ...] = ()
    """The patterns under which the conversion knows the sources, one for each."""

    def convert(self, tensors: Mapping[str, Tensor], model: Any) -> list[tuple[str, Tensor]]:
        """Names and tensors in the checkpoint, from the whole ``tensors`` by their names in the model."""
        if self.conversion is None:
            return [(self.name, tensors[self.sources[0]])]
        conversion = deepcopy(self.conversion)
        for source, pattern in zip(self.sources, self.patterns, strict=True):
            conversion.add_tensor(self.name, source, pattern, tensors[source])  # type: ignore[arg-type]  # a future or a tensor
        converted = conversion.convert(self.name, model=model, config=model.config)
        return [(name, value[0] if isinstance(value, list) else value) for name, value in converted.items()]


def keep_used_conversions(model: Any) -> None:
    """Drop the conversions that loading did not need, since saving would otherwise do more than revert.

    transformers does so itself, except when it loads for ZeRO-3: it then saves under names that nobody can load.
    """
    if hasattr(model, "_weight_conversions"):
        model._weight_conversions = [transform for transform in model._weight_conversions if transform.was_used()]


def units(model: Any) -> tuple[Unit, ...]:
    """The units that turn ``model``'s tensors into its checkpoint's, in the model's order; the same on every rank."""
    reverse = [transform.reverse_transform() for transform in reversed(_conversions(model))]
    renamings = [transform for transform in reverse if isinstance(transform, WeightRenaming)]
    conversions = [transform for transform in reverse if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: conversion for conversion in conversions for pattern in conversion.source_patterns}
    names = list(stored_tensors(model))
    found: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(names, key=dot_natural_key):  # some renamings depend on earlier ones
        stored, pattern = rename_source_key(name, renamings, conversions, reverse=True)
        found.setdefault(stored, []).append((name, pattern))
    made = [_unit(stored, sources, by_pattern) for stored, sources in found.items()]
    places = {name: place for place, name in enumerate(names)}
    return tuple(sorted(made, key=lambda unit: min(places[source] for source in unit.sources)))


def _unit(stored: str, sources: list[tuple[str, str | None]], by_pattern: Mapping[str, WeightConverter]) -> Unit:
    names, patterns = zip(*sources, strict=True)
    if patterns[0] is None:
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} would both be {stored} in the checkpoint")
        return Unit(sources=names, name=stored)
    return Unit(sources=names, name=stored, conversion=by_pattern[patterns[0]], patterns=patterns)


def _conversions(model: Any) -> list[WeightTransform]:
    """The conversions by which the model was loaded, or else those of its class.

    Some conversions drop a part of names that not every checkpoint has; only loading knows whether this one had it.
    """
    if hasattr(model, "_weight_conversions"):
        conversions: list[WeightTransform] = model._weight_conversions
        return conversions
    return [
        transform
        for transform in get_model_conversion_mapping(model, add_legacy=False)
        if not isinstance(transform, PrefixChange)
    ]
