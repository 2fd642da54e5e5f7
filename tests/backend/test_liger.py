"""Layers of liger-kernel, of which a stand-in is enough to see when they are taken and when they are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from families import random_model
from tiny_run import make_config

from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly
from dapo_openrlhf.backend.run import needs
from dapo_openrlhf.backend.run.inputs import check_inputs
from dapo_openrlhf.backend.trainer import liger
from dapo_openrlhf.backend.trainer.families import UnfitModel
from dapo_openrlhf.config.errors import ConfigError


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    """A package of that name, and what it knows to replace."""
    known: dict[str, Callable[..., None]] = {}
    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = known  # type: ignore[attr-defined]  # as the package has it
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    return known


def test_only_its_losses_are_left_out(package: dict[str, Callable[..., None]]) -> None:
    """Of those that a family's function has; norms and the rest stay as the package means them."""
    told: list[dict[str, Any]] = []

    def llama(
        rope: bool = True, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True, rms_norm: bool = True
    ) -> None:
        told.append({"rope": rope, "losses": (cross_entropy, fused_linear_cross_entropy), "rms_norm": rms_norm})

    def other(rms_norm: bool = True) -> None:
        told.append({"rms_norm": rms_norm})

    package.update(llama=llama, other=other)
    liger.install(SimpleNamespace(model_type="llama"))
    liger.install(SimpleNamespace(model_type="other"))
    assert told == [{"rope": True, "losses": (False, False), "rms_norm": True}, {"rms_norm": True}]


def test_a_family_that_it_does_not_know_is_refused_by_name(package: dict[str, Callable[..., None]]) -> None:
    config = SimpleNamespace(model_type="mamba", architectures=["MambaForCausalLM"])
    with pytest.raises(UnfitModel, match=r"ds\.use_liger_kernel: .* MambaForCausalLM \(model_type mamba\); use false"):
        liger.install(config)


@pytest.mark.real
@pytest.mark.parametrize("wanted", [False, True])
def test_a_model_is_made_of_the_replaced_layers(
    wanted: bool, package: dict[str, Callable[..., None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And computes its log-probs by the trainer's own way all the same."""
    import_openrlhf_lightly()
    from transformers.models.qwen3 import modeling_qwen3

    from dapo_openrlhf.backend.trainer.models import Models

    class Norm(modeling_qwen3.Qwen3RMSNorm):
        pass

    package["qwen3"] = lambda: monkeypatch.setattr(modeling_qwen3, "Qwen3RMSNorm", Norm)
    random_model("Qwen3").save_pretrained(tmp_path)
    args = SimpleNamespace(
        ds=SimpleNamespace(
            attn_implementation="sdpa", param_dtype="fp32", use_liger_kernel=wanted,
            lora=SimpleNamespace(rank=0, alpha=16, target_modules=("all-linear",)),
        ),
        actor=SimpleNamespace(gradient_checkpointing_enable=False),
    )  # fmt: skip
    strategy: Any = SimpleNamespace(args=args, stage=2, seed=0)
    model = Models(strategy, device=torch.device("cpu")).language_model(str(tmp_path))
    assert isinstance(model.model.norm, Norm) == isinstance(model.model.layers[0].input_layernorm, Norm) == wanted
    assert model.forward.func.__name__ == "token_logprobs"


def test_without_the_package_a_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    config = make_config(tmp_path, **{"device": "cuda", "ds.use_liger_kernel": True})
    assert needs.missing_liger(config) is not None
    with pytest.raises(ConfigError, match=r"ds\.use_liger_kernel: the package liger-kernel is not installed here"):
        check_inputs(config, training=True)


def test_with_the_package_it_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert needs.missing_liger(make_config(tmp_path, **{"device": "cuda", "ds.use_liger_kernel": True})) is None
