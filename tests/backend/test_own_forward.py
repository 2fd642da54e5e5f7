"""The trainer's forward pass is the model's own, whatever the family: log-probs, gradients, calls of modules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCABULARY, random_model
from torch import Tensor, nn

from dapo_openrlhf.backend.trainer import attention, checkpointing, families, logprobs, rows
from dapo_openrlhf.backend.trainer.own_forward import UnknownHead, instead

LENGTHS = (23, 23, 20, 11, 4, 3)
TEMPERATURE = 0.7
CHOSEN = (
    "Qwen2, window in one layer",
    "Mistral, window",
    "Gemma 2",
    "Gemma 3",
    "Granite",
    "Cohere 2",
    "GPT-2",
    "OPT",
    "Falcon",
    "Mixtral",
    "gpt-oss",
    "LFM2",
    "Qwen3-Next",
    "Mamba",
    "Nemotron",
)
"""A window, soft caps, scales, sinks, dropout, experts, convolutions, linear attention, a state space, a nested decoder."""


def _sequences(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


def _one_by_one(model: Any) -> Tensor:
    """Log-probs of every token but the first of each sequence, by the model's own forward."""
    parts = []
    for sequence in _sequences():
        logits = model(input_ids=sequence[None], use_cache=False).logits[0, :-1] / TEMPERATURE
        parts.append(logits.log_softmax(-1).gather(-1, sequence[1:, None])[:, 0])
    return torch.cat(parts)


def _precise(name: str, model: Any) -> Any:
    """In float64, which grouped products of experts do not know."""
    return model if {"num_local_experts", "num_experts"} & FAMILIES[name].settings.keys() else model.double()


def _trainers(name: str) -> Any:
    """The family's model as the trainer makes it."""
    attention.register()
    config = random_model(name).config
    by_rows = families.why_by_rows(config) is not None
    implementation = families.rows_attention(config) if by_rows else attention.NAME
    model = _precise(name, random_model(name, attn_implementation=implementation))
    logprobs.install(model, by_rows=by_rows)
    return model


def _packed(model: Any, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    flat = torch.cat(_sequences(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat([torch.arange(start, start + n - 1) for start, n in zip(starts, lengths, strict=False)])
    found: Tensor
    found, *_ = model(
        input_ids=flat[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        positions=positions,
        targets=flat[positions + 1],
        temperature=TEMPERATURE,
        buckets=rows.make_buckets(lengths, device=torch.device("cpu")),
    )
    return found


@pytest.mark.long
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", CHOSEN)
def test_packed_sequences_have_the_log_probs_and_gradients_of_the_models_own_forward(
    name: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 7 * VOCABULARY)  # several chunks, the last one shorter
    monkeypatch.setattr(attention, "QUERIES", 6)
    eager = "eager" if random_model(name)._supports_attention_backend else None
    single, together = _precise(name, random_model(name, attn_implementation=eager)), _trainers(name)
    if checkpointed:
        if name == "Mamba":
            pytest.skip("in rows as LFM2")
        checkpointing.install(together)
    expected, found = _one_by_one(single), _packed(together)
    torch.testing.assert_close(found.double(), expected.double(), atol=3e-5, rtol=0)
    expected.pow(2).sum().backward()
    found.double().pow(2).sum().backward()
    for (parameter, one), (_, other) in zip(single.named_parameters(), together.named_parameters(), strict=True):
        if one.grad is None or other.grad is None:
            assert one.grad is other.grad, parameter
            continue
        torch.testing.assert_close(other.grad, one.grad, atol=2e-4 * max(1, float(one.grad.abs().max())), rtol=0)


@pytest.mark.parametrize("name", ["Llama", "Granite", "Gemma 2", "OPT", "Mixtral"])
def test_every_module_is_called_equally_often_whatever_the_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 5 * VOCABULARY)
    model, calls = _trainers(name), Counter[str]()

    def count(of: str) -> Any:
        return lambda *_: calls.update([of])

    for of, module in model.named_modules():
        module.register_forward_pre_hook(count(of))
    seen = []
    for lengths in ((4,), (40, 3), (23, 23, 20, 11, 4, 3)):
        calls.clear()
        _packed(model, lengths).sum().backward()
        seen.append(dict(calls))
    assert seen[0] == seen[1] == seen[2]
    assert set(seen[0].values()) == {1}


def test_an_output_layer_that_is_no_module_is_refused_by_name() -> None:
    model = random_model("Llama")
    with instead(model, "get_output_embeddings", lambda: None), pytest.raises(UnknownHead, match="LlamaForCausalLM"):
        logprobs.install(model)


def test_an_output_layer_that_is_called_twice_is_refused_by_name() -> None:
    class Twice(type(random_model("Llama"))):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
            output = super().forward(input_ids=input_ids, **inputs)
            self.lm_head(self.model.norm(torch.zeros(1, 1, 64).double()))
            return output

    model = _trainers("Llama")
    model.__class__ = Twice
    with pytest.raises(UnknownHead, match="calls its output layer more than once"):
        _packed(model)


def test_what_is_stood_in_for_comes_back_after_an_error() -> None:
    owner = nn.Module()
    owner.child = nn.Linear(1, 1)
    with pytest.raises(KeyError), instead(owner, "child", 3):
        assert owner.child == 3
        raise KeyError
    assert isinstance(owner.child, nn.Linear) and "child" not in owner.__dict__


@pytest.mark.parametrize("name", FAMILIES)
def test_families_read_packed_sequences_unless_their_layers_cannot(name: str) -> None:
    in_rows = {"GPT-J", "BLOOM", "Falcon", "StableLM", "LFM2", "Qwen3-Next", "Mamba"}
    assert (families.why_by_rows(random_model(name).config) is not None) == (name in in_rows)


def test_nothing_is_dropped_with_gradient_checkpointing() -> None:
    model = _trainers("GPT-2")
    checkpointing.install(model)
    assert not any(module.training for module in model.modules())
    assert torch.equal(_packed(model), _packed(model))
