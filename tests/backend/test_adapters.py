"""Adapters: the layers that get them, what is published of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import distinct_model
from plain_model import PlainModel

from dapo_openrlhf.backend.trainer.adapters import LoraSettings, WithoutAdapters, find_targets, install, parameters_of
from dapo_openrlhf.backend.trainer.families import UnfitModel
from dapo_openrlhf.backend.trainer.parameters import Published
from dapo_openrlhf.backend.trainer.stored import Adapter

DENSE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def lora(*targets: str, rank: int = 4, alpha: int = 8) -> LoraSettings:
    return LoraSettings(rank=rank, alpha=alpha, target_modules=targets or ("all-linear",))


def adapted(family: str, *, seed: int = 0, **settings: Any) -> Any:
    """A model whose adapters have learned something."""
    model = distinct_model(family, seed=0, settings=settings)
    install(model, lora(), seed=seed)
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=dice), alpha=0.1)
    return model


def test_a_weight_of_two_by_three_by_hand() -> None:
    """scale 2, up (1, 10), down (1, 2, 3): twice their outer product is added; the weight itself stays."""
    weight = torch.ones(2, 3)
    parts = {"down": torch.tensor([[1.0, 2.0, 3.0]]), "up": torch.tensor([[1.0], [10.0]]), "scale": 2.0}
    found = Adapter(**parts, transposed=False).added_to(weight)  # type: ignore[arg-type]
    assert found.tolist() == [[3.0, 5.0, 7.0], [21.0, 41.0, 61.0]]
    assert torch.equal(Adapter(**parts, transposed=True).added_to(weight.T), found.T)  # type: ignore[arg-type]
    assert torch.equal(weight, torch.ones(2, 3))


def test_the_sum_is_rounded_once() -> None:
    """In bfloat16 1 + 3 x 2^-9 is 1 + 2^-7; the product rounded first, or each of three terms added alone, gives another."""
    step = torch.full((1, 1), 2.0**-9, dtype=torch.bfloat16)
    three = Adapter(down=step.repeat(3, 1), up=torch.ones(1, 3, dtype=torch.bfloat16), scale=1.0, transposed=False)
    assert three.added_to(torch.ones(1, 1, dtype=torch.bfloat16)).item() == 1 + 2.0**-7


@pytest.mark.parametrize("family", ["Qwen2", "GPT-2", "Mixtral", "GPT-NeoX"])
def test_what_is_published_is_what_peft_merges(family: str) -> None:
    """Under the names of the model's own publication; publishing many times changes nothing."""
    model = adapted(family)
    publication = Published(model)
    assert publication.layout == Published(distinct_model(family, seed=0)).layout
    first = {name: tensor.clone() for name, tensor in publication.tensors()}
    for _ in range(3):
        assert all(torch.equal(tensor, first[name]) for name, tensor in publication.tensors())
    for module in list(model.modules()):
        if hasattr(module, "lora_A"):
            module.merge()
    merged = dict(Published(_unwrapped(model)).tensors())
    assert merged.keys() == first.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)


def _unwrapped(model: Any) -> Any:
    """The model with peft's layers replaced by the layers inside."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.base_layer)
    return model


def test_only_adapters_are_trained_and_their_random_halves_depend_on_the_seed_alone() -> None:
    models = [adapted("Qwen2", seed=seed) for seed in (0, 0, 1)]
    trained = [dict((n, p) for n, p in model.named_parameters() if p.requires_grad) for model in models]
    assert all("lora_" in name for name in trained[0]) and len(trained[0]) == 2 * 2 * len(DENSE)
    down = "model.layers.1.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(trained[0][down], trained[1][down]) and not torch.equal(trained[0][down], trained[2][down])
    bare = distinct_model("Qwen2", seed=0)
    settings = lora()
    targets = find_targets(bare, settings)
    assert parameters_of(bare, settings, targets) == sum(p.numel() for p in trained[0].values())


def test_without_adapters_the_model_is_the_one_that_training_began_with() -> None:
    """To the bit; and with them again afterwards, also after an error in between."""
    model, ids = adapted("Qwen2"), torch.arange(10)[None]
    sharded = PlainModel(model, lr=0.0)
    own = distinct_model("Qwen2", seed=0)(input_ids=ids).logits
    learned = model(input_ids=ids).logits
    reference = WithoutAdapters(sharded)
    assert torch.equal(reference(input_ids=ids).logits, own) and not torch.equal(learned, own)
    assert torch.equal(model(input_ids=ids).logits, learned)
    with pytest.raises(ValueError, match="input_ids"):
        reference()
    assert torch.equal(model(input_ids=ids).logits, learned)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("Qwen2", DENSE),
        ("GPT-2", {"c_attn", "c_proj", "c_fc"}),
        ("Mixtral", ATTENTION),
        ("Qwen3-MoE", ATTENTION),
        ("DeepSeek-V3", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
    ],
)
def test_all_linear_is_every_layer_that_has_a_weight_of_its_own(family: str, expected: set[str]) -> None:
    """No output layer, no experts: also not where peft would take a dense layer's name for theirs."""
    found = find_targets(distinct_model(family, seed=0), lora())
    assert {name.rpartition(".")[2] for name in found} == expected


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("Qwen2", lora("qproj"), "qproj names no layer of Qwen2ForCausalLM; use all-linear, or some of down_proj, "),
        ("Qwen2", lora("q_proj,v_proj"), "q_proj,v_proj names no layer"),
        ("Qwen2", lora("q_proj", "lm_head"), "lm_head is the output layer"),
        ("Qwen2", lora("embed_tokens"), "embed_tokens is of class Embedding"),
        ("Qwen2", lora("proj"), "proj names no layer"),
        ("Mixtral", lora("w1"), "w1 names no layer"),
        ("Mixtral", lora("gate_up_proj"), "gate_up_proj holds the weights of all experts"),
        ("DeepSeek-V3", lora("down_proj"), "down_proj is a name that peft gives to the weights of experts"),
        ("Qwen2", lora(rank=65), "ds.lora.rank: 65 is more than 64"),
        ("Qwen2", lora("v_proj", rank=33), "ds.lora.rank: 33 is more than 32"),
    ],
)
def test_targets_and_ranks_that_do_not_fit_are_refused_by_name(family: str, settings: LoraSettings, words: str) -> None:
    with pytest.raises(UnfitModel, match=words):
        find_targets(distinct_model(family, seed=0), settings)


def test_a_layer_is_named_by_its_last_parts() -> None:
    found = find_targets(distinct_model("Qwen2", seed=0), lora("layers.1.self_attn.q_proj", "v_proj", "v_proj"))
    assert found == (
        "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj",
    )  # fmt: skip


def test_the_adapter_beside_a_saved_model_is_read_by_peft(tmp_path: Path) -> None:
    """With short names where these name the same layers; the sum is what the model computes."""
    from peft import PeftModel

    from dapo_openrlhf.backend.trainer.adapters import write_adapter
    from dapo_openrlhf.backend.trainer.stored import adapter_tensors

    model, ids = adapted("Qwen2"), torch.arange(10)[None]
    write_adapter(model, {name: part.whole() for name, part in adapter_tensors(model).items()}, tmp_path / "adapter")
    read = PeftModel.from_pretrained(distinct_model("Qwen2", seed=0), tmp_path / "adapter")
    assert set(read.peft_config["default"].target_modules) == DENSE
    assert torch.equal(read(input_ids=ids).logits, model(input_ids=ids).logits)
