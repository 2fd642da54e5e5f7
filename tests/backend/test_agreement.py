"""The comparison before the first step: healthy models pass in each data type, broken ones are refused and say where."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import random_model
from family_figures import random_groups

from dapo_openrlhf.backend.messages import Agreement, Difference, GroupTokens
from dapo_openrlhf.backend.run import start_check
from dapo_openrlhf.backend.trainer import attention, families, logprobs, rows
from dapo_openrlhf.backend.trainer.agreement import Comparison
from dapo_openrlhf.backend.trainer.packing import Packing

CPU = torch.device("cpu")


class _Engine(SimpleNamespace):
    def __call__(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


def _comparison(name: str, dtype: torch.dtype = torch.float32) -> Comparison:
    attention.register()
    config = random_model(name).config
    by_rows = families.why_by_rows(config) is not None
    implementation = families.rows_attention(config) if by_rows else attention.NAME
    model = random_model(name, attn_implementation=implementation).to(dtype)
    logprobs.install(model, by_rows=by_rows)
    sharded: Any = _Engine(inner=model, device=CPU)
    return Comparison(sharded, Packing(attention.NAME), temperature=0.8)


def _as_sampled(comparison: Comparison, groups: list[GroupTokens]) -> list[GroupTokens]:
    """The groups with the log-probs that an engine would give that computes as transformers does."""
    own = comparison.own([np.concatenate([group.prompt_ids, group.response_ids]) for group in groups])
    return [
        replace(group, rollout_logprobs=scores[-len(group.response_ids) :])
        for group, scores in zip(groups, own, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "Mistral, window", "Gemma 2", "Granite", "GPT-2", "Mixtral", "LFM2"])
def test_a_healthy_model_is_never_refused(name: str, dtype: torch.dtype) -> None:
    comparison = _comparison(name, dtype)
    found = comparison.agreement([_as_sampled(comparison, random_groups())])
    assert start_check.tolerable(found, found.packed), found
    assert start_check.tolerable(found, found.engines[0]), found
    assert found.eps == torch.finfo(dtype).eps
    assert found.rounding.mean > 0
    if dtype == torch.float32:
        assert found.packed.largest < 1e-4


def _refused(comparison: Comparison) -> str:
    found = comparison.agreement([random_groups()])
    assert not start_check.tolerable(found, found.packed), found
    return start_check.refusal_of_packed(found, comparison.where_packed_differs(random_groups()))


def test_a_forgotten_window_is_named_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = _comparison("Qwen2, window in one layer")
    whole = attention._attend
    monkeypatch.setattr(
        attention, "_attend", lambda q, k, v, visible, scores: whole(q, k, v, replace(visible, allowed=None), scores)
    )
    text = _refused(comparison)
    assert text.startswith("Qwen2ForCausalLM: the trainer's packed forward pass is not the model's own")
    assert "first in layer 0 (sliding_attention)" in text and "not kept apart" not in text


def test_a_forgotten_scale_of_the_logits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = _comparison("Granite")
    whole = logprobs._chunk
    monkeypatch.setattr(
        logprobs, "_chunk", lambda layer, tail, *rest, **how: whole(layer, lambda logits: logits, *rest, **how)
    )
    assert "only in what follows the last layer: output layer, scale or soft cap" in _refused(comparison)


def test_packed_sequences_that_see_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = _comparison("Llama")
    apart = rows.make_buckets
    monkeypatch.setattr(rows, "make_buckets", lambda lengths, *, device: apart([sum(lengths)], device=device))
    text = _refused(comparison)
    assert "first in layer 0" in text
    assert "each sequence alone comes out right: packed sequences are not kept apart" in text


def test_dropout_is_refused() -> None:
    comparison = _comparison("GPT-2")
    comparison._model.train()
    assert "GPT2LMHeadModel" in _refused(comparison)


def test_a_model_whose_code_looks_into_a_mask_is_refused_by_name() -> None:
    """Packed sequences have a function of positions in its place."""
    comparison = _comparison("Llama")

    def look(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given["attention_mask"] is not None:
            assert given["attention_mask"].dtype

    comparison._model.model.layers[0].self_attn.register_forward_pre_hook(look, with_kwargs=True)
    with pytest.raises(
        families.UnfitModel, match=r"LlamaForCausalLM: the trainer's packed forward pass fails.*'dtype'"
    ):
        comparison.agreement([random_groups()])


def test_an_engine_that_differs_is_named() -> None:
    comparison = _comparison("Llama")
    groups = _as_sampled(comparison, random_groups())
    off = [replace(group, rollout_logprobs=group.rollout_logprobs + np.float32(0.01)) for group in groups]
    found = comparison.agreement([groups, off])
    assert [start_check.tolerable(found, engine) for engine in found.engines] == [True, False]
    assert found.engines[1].mean == pytest.approx(0.01, abs=1e-4)
    text = start_check.refusal_of_engine(found, "engine 1", found.engines[1])
    assert "LlamaForCausalLM: engine 1 differs from the trainer" in text and "0.01 on average" in text
    assert "train.check_agreement false" in text


def _found(eps: float, rounding: float = 0.0) -> Agreement:
    nothing = Difference(mean=0.0, largest=0.0)
    return Agreement(
        architecture="Some",
        eps=eps,
        packed=nothing,
        rounding=Difference(mean=rounding, largest=4 * rounding),
        engines=(nothing,),
    )


@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 3.5e-4), (torch.float16, 0.031), (torch.bfloat16, 0.088)])
def test_half_of_the_types_digits_are_tolerated(dtype: torch.dtype, mean: float) -> None:
    limit = start_check.tolerance(_found(torch.finfo(dtype).eps))
    assert limit.mean == pytest.approx(mean, rel=0.02)
    assert limit.largest == pytest.approx(16 * limit.mean)


def test_a_model_that_magnifies_rounding_errors_is_not_blamed_for_it() -> None:
    assert start_check.tolerance(_found(1e-7, rounding=0.5)) == Difference(mean=4.0, largest=16.0)


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_tolerated(mean: float) -> None:
    assert not start_check.tolerable(_found(1e-7), Difference(mean=mean, largest=mean))
