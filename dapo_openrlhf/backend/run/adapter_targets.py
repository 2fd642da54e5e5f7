"""Finds the layers of a model that get adapters, from a model without weights (imports torch when it is called)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.training import LoraSection


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTargets:
    """The layers that get adapters."""

    layers: int
    names: Sequence[str]
    """The last parts of their names."""
    parameters: int
    """Number of parameters of the adapters, which alone are trained."""

    def __str__(self) -> str:
        return (
            f"adapters of {self.layers} layers ({', '.join(self.names)}) are trained: {self.parameters:,} parameters, and the "
            "model's own stay"
        )


def find_adapter_targets(model: str, lora: LoraSection, *, trust_remote_code: bool) -> AdapterTargets:
    """The layers of ``model`` that ``lora`` names. Raises ``ConfigError`` for a rank or targets that do not fit it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dapo_openrlhf.backend.trainer.adapters import LoraSettings, find_targets, parameters_of
    from dapo_openrlhf.backend.trainer.families import UnfitModel

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    settings = LoraSettings(rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules)
    try:
        targets = find_targets(built, settings)
    except UnfitModel as error:
        raise ConfigError(str(error)) from error
    return AdapterTargets(
        layers=len(targets),
        names=sorted({name.rpartition(".")[2] for name in targets}),
        parameters=parameters_of(built, settings, targets),
    )
