"""Looks at a model's layers without its weights: which get adapters, and whether it has experts to balance.

torch is imported when that is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    from dapo_openrlhf.backend.trainer.adapters import LoraSettings, find_targets, parameters_of
    from dapo_openrlhf.backend.trainer.families import UnfitModel

    built = _without_weights(model, trust_remote_code=trust_remote_code)
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


def check_balance(model: str, *, trust_remote_code: bool) -> None:
    """Raise ``ConfigError`` if ``model`` has no experts whose load transformers can balance."""
    from dapo_openrlhf.backend.trainer.balance import why_not_balanced

    if (reason := why_not_balanced(_without_weights(model, trust_remote_code=trust_remote_code))) is not None:
        raise ConfigError(f"actor.aux_loss_coef: {reason}; use 0")


def _without_weights(model: str, *, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
