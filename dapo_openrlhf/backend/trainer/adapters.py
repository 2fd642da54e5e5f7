"""Low-rank adapters of a model's linear layers, which alone are trained (peft; runs inside the trainer's ranks).

LoRA, arXiv 2106.09685. The adapters have no dropout: the trained policy must be the one that samples, and engines sample
with the sum of a weight and its adapter, see :mod:`stored`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dapo_openrlhf.backend.trainer.families import UnfitModel
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.backend.trainer.stored import ADAPTER

ALL_LINEAR = "all-linear"
"""Stands for every linear layer but the output layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Settings of the adapters; names and values are those of ``ds.lora`` in the configuration."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]

    @classmethod
    def of(cls, section: Any) -> Self | None:
        """Of OpenRLHF's settings ``ds.lora``; None if they ask for no adapters."""
        if section.rank == 0:
            return None
        return cls(rank=section.rank, alpha=section.alpha, target_modules=tuple(section.target_modules))


def install(model: Any, lora: LoraSettings, *, seed: int) -> None:
    """Put an adapter around each target, with changes of zero, and let nothing but the adapters be trained.

    ``seed``: of the adapters' random halves, the same on every rank. Raises :class:`UnfitModel` for targets or a rank that
    do not fit the model.
    """
    targets = find_targets(model, lora)
    kind = next(model.parameters()).dtype
    config = _config(lora, targets, base=model.name_or_path, transposed=_transposed(model, targets))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for layer in _layers(model):
        layer.lora_A.to(kind)
        layer.lora_B.to(kind)


def find_targets(model: Any, lora: LoraSettings) -> tuple[str, ...]:
    """Names of the linear layers that get an adapter. Raises :class:`UnfitModel`."""
    head = model.get_output_embeddings()
    linear = {
        name: _sides(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    taken = _taken_for_experts(model, lora, linear)
    possible = {name: sides for name, sides in linear.items() if name not in taken}
    if lora.target_modules == (ALL_LINEAR,):
        found = set(possible)
    else:
        found = set()
        for target in lora.target_modules:
            matched = {name for name in possible if _is_named(target, name)}
            if not matched:
                there = ", ".join(sorted({name.rpartition(".")[2] for name in possible}))
                raise UnfitModel(
                    f"ds.lora.target_modules: {target} {_why_not(target, model, taken)}; use {ALL_LINEAR}, or some of {there}"
                )
            found |= matched
    if not found:
        raise UnfitModel(f"ds.lora.rank: {type(model).__name__} has no linear layers that can get adapters; use 0")
    widest = max(min(possible[name]) for name in found)
    if lora.rank > widest:
        raise UnfitModel(
            f"ds.lora.rank: {lora.rank} is more than {widest}, the rank that the targets' own matrices have at most, so that "
            "adapters would be larger than what they adapt; use a smaller one, such as 8, or 0 to train the whole model"
        )
    return tuple(name for name in possible if name in found)


def parameters_of(model: Any, lora: LoraSettings, targets: Sequence[str]) -> int:
    """Number of parameters of the adapters of these layers."""
    return sum(lora.rank * sum(_sides(model.get_submodule(name))) for name in targets)


def write_adapter(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write whole ``tensors``, under peft's names, as a folder for ``peft.PeftModel.from_pretrained``."""
    config = copy.copy(model.peft_config[ADAPTER])
    config.target_modules = set(_shortest(model, config.target_modules))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})


class WithoutAdapters:
    """A trained model's forward pass with its adapters off, which is the model that training began with.

    As a reference for a KL it takes no memory. It makes the same calls of modules as the trained model, with a scale of 0:
    under ZeRO-3 these are collectives, whose order DeepSpeed remembers.
    """

    def __init__(self, model: ShardedModel) -> None:
        self._model = model
        self._layers = tuple(_layers(model.inner))

    def __call__(self, **inputs: Any) -> Any:
        """Run one forward pass."""
        with self._off():
            return self._model(**inputs)

    @contextmanager
    def _off(self) -> Iterator[None]:
        scales = [layer.scaling[ADAPTER] for layer in self._layers]
        try:
            for layer in self._layers:
                layer.scaling[ADAPTER] = 0.0
            yield
        finally:
            for layer, scale in zip(self._layers, scales, strict=True):
                layer.scaling[ADAPTER] = scale


def _layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def _config(lora: LoraSettings, targets: Sequence[str], *, base: str = "", transposed: bool = False) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
        base_model_name_or_path=base,
    )


def _sides(module: Any) -> tuple[int, int]:
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def _transposed(model: Any, targets: Sequence[str]) -> bool:
    return any(isinstance(model.get_submodule(name), Conv1D) for name in targets)


def _is_named(target: str, name: str) -> bool:
    """peft's rule: the whole name, or its last parts."""
    return name == target or name.endswith(f".{target}")


def _taken_for_experts(model: Any, lora: LoraSettings, linear: Mapping[str, Any]) -> set[str]:
    """The layers that peft would leave out for the sake of experts, whose fused weights have their names in transformers 4."""
    config = _config(lora, list(linear))
    convert_peft_config_for_transformers(config, model=model, conversions=None)
    return set(linear) - set(config.target_modules or ())


def _why_not(target: str, model: Any, taken: set[str]) -> str:
    """The reason why a target gets no adapter."""
    if any(_is_named(target, name) for name in taken):
        return "is a name that peft gives to the weights of experts, which get no adapters"
    named = [module for name, module in model.named_modules() if _is_named(target, name)]
    if any(module is model.get_output_embeddings() for module in named):
        return "is the output layer, which gets no adapter"
    if named:
        return f"is of class {type(named[0]).__name__}, which gets no adapter"
    if any(_is_named(target, name) and parameter.dim() > 2 for name, parameter in model.named_parameters()):
        return "holds the weights of all experts in one tensor, which gets no adapter"
    return f"names no layer of {type(model).__name__}"


def _shortest(model: Any, targets: Sequence[str]) -> Sequence[str]:
    """The targets by the last parts of their names, if no other layer has them."""
    last = {name.rpartition(".")[2] for name in targets}
    named = {
        name
        for name, module in model.named_modules()
        if any(_is_named(part, name) for part in last) and isinstance(module, nn.Linear | Conv1D | LoraLayer)
    }
    return sorted(last) if named == set(targets) else targets
