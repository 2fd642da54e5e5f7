"""Packed sequences are as good as one after the other: same log-probs, same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from dapo_openrlhf.backend.trainer import attention, logprobs, rows

LENGTHS = (11, 11, 9, 4, 3)
VOCABULARY = 13
TEMPERATURE = 0.7


def _model(implementation: str) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=implementation,
    )
    return Qwen2ForCausalLM(config).double()


def _sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def _one_by_one(model: Qwen2ForCausalLM) -> torch.Tensor:
    """Log-probs of every token but the first of each sequence, by the model's own forward."""
    parts = []
    for sequence in _sequences():
        logits = model(input_ids=sequence[None]).logits[0, :-1] / TEMPERATURE
        parts.append(logits.log_softmax(-1).gather(-1, sequence[1:, None])[:, 0])
    return torch.cat(parts)


def _packed(model: Qwen2ForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs.install(model)
    flat = torch.cat(_sequences())
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    positions = torch.cat([torch.arange(start, start + n - 1) for start, n in zip(starts, LENGTHS, strict=False)])
    scores, entropies, _ = model(
        input_ids=flat[None],
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        positions=positions,
        targets=flat[positions + 1],
        temperature=TEMPERATURE,
        buckets=rows.make_buckets(LENGTHS, device=torch.device("cpu")),
    )
    return scores, entropies


@pytest.mark.parametrize("rows", [1 << 27, 5 * VOCABULARY])  # whole at once, and in chunks run again for the gradient
def test_packed_sequences_have_the_log_probs_and_gradients_of_single_ones(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", rows)
    attention.register()
    single, together = _model("sdpa"), _model(attention.NAME)
    expected = _one_by_one(single)
    found, _ = _packed(together)
    # Log-probs are computed in float32, whatever the model's type.
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    expected.pow(2).sum().backward()
    found.double().pow(2).sum().backward()
    for (name, one), (_, other) in zip(single.named_parameters(), together.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-5)


class Reads(TorchDispatchMode):
    """Notes what would make a GPU wait: a result whose size or value the host has to know, as of an index of booleans."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        booleans = name.startswith("index") and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in tree_leaves(args[1:])
        )
        if booleans or name in ("nonzero", "masked_select", "_local_scalar_dense"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_a_layer_s_attention_never_waits_for_the_device() -> None:
    buckets = rows.make_buckets(LENGTHS, device=torch.device("cpu"))
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8, requires_grad=True) for heads in (4, 2, 2))
    with Reads() as reads:
        query[query > 0]
    assert reads.found, "what is looked for would be found"
    with Reads() as reads:
        output, _ = attention.packed_sdpa(nn.Module(), query, key, value, attention.Visible(buckets, None, None))
        output.sum().backward()
    assert reads.found == []
    assert all(tensor.grad is not None for tensor in (query, key, value))


def test_entropy_is_the_distributions_own() -> None:
    attention.register()
    model = _model(attention.NAME)
    with torch.no_grad():
        _, entropies = _packed(model)
        plain = _model("sdpa")
        logits = torch.cat([plain(input_ids=s[None]).logits[0, :-1] / TEMPERATURE for s in _sequences()])
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies.double(), expected, atol=1e-5, rtol=0)


def test_buckets_hold_little_padding_and_every_token_once() -> None:
    buckets = rows.make_buckets(LENGTHS, device=torch.device("cpu"))
    assert [bucket.tokens for bucket in buckets] == [11 + 11 + 9, 4 + 3]
    for bucket in buckets:
        if bucket.index is None or bucket.valid is None:
            assert bucket.tokens % bucket.longest == 0, "without padding all are of one length"
            continue
        assert bucket.index.flatten()[bucket.valid].tolist() == list(range(bucket.tokens))
        assert bucket.tokens / bucket.index.numel() >= 1 - rows.MOST_PADDING


def test_sequences_must_come_longest_first() -> None:
    with pytest.raises(ValueError, match="longest first"):
        rows.make_buckets((3, 4), device=torch.device("cpu"))
