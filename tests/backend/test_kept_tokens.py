"""What a sampler kept: packed, and as the set over which a trainer's log-probs are normalised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dapo_openrlhf.backend.kept_tokens import KeptTokens, bitmap_size, joined_sets, pack_set, width
from dapo_openrlhf.backend.trainer.kept import Kept
from dapo_openrlhf.backend.trainer.logprobs import _chunk

SETS = [[3], [0, 2, 4], [1, 2, 3, 4, 5, 6], [0], [*range(19)], [5, 18]]


def packed(sets: list[list[int]], vocabulary: int) -> KeptTokens:
    return KeptTokens(
        vocabulary=vocabulary,
        counts=np.asarray([len(one) for one in sets], np.int32),
        packed=np.frombuffer(b"".join(pack_set(np.asarray(one, np.int32), vocabulary) for one in sets), np.uint8),
    )


@pytest.mark.parametrize("vocabulary", [19, 1000, 70_000])
def test_sets_come_out_as_they_went_in(vocabulary: int) -> None:
    sets = packed(SETS, vocabulary)
    assert sets.ids().tolist() == [token for one in SETS for token in one]
    assert sets.part(1, 5).ids().tolist() == [token for one in SETS[1:5] for token in one]
    assert sets.part(2, 2).ids().tolist() == []
    twice = joined_sets([sets.part(4, 6), sets.part(0, 1)])
    assert twice.ids().tolist() == [*range(19), 5, 18, 3]
    assert int(twice.sizes.sum()) == len(twice.packed)


def test_a_set_takes_the_smaller_of_ids_and_one_bit_a_token() -> None:
    assert (width(65_536), width(65_537)) == (2, 4)
    assert bitmap_size(151_936) == 18_992
    for count, size in ((1, 4), (20, 80), (4748, 18_992), (4749, 18_992), (151_936, 18_992)):
        ids = np.random.default_rng(count).permutation(151_936)[:count].astype(np.int32)
        sets = packed([np.sort(ids).tolist()], 151_936)
        assert len(sets.packed) == size
        assert sets.ids().tolist() == sorted(ids.tolist())


def test_many_bitmaps_are_unpacked_in_order() -> None:
    dice = np.random.default_rng(0)
    sets = [np.flatnonzero(dice.random(64) < 0.6).tolist() for _ in range(600)]
    assert packed(sets, 64).ids().tolist() == [token for one in sets for token in one]


def four_tokens() -> tuple[Tensor, Kept, Tensor]:
    """Probabilities 0.4, 0.3, 0.2, 0.1, of which the first three were kept: 4/9, 3/9, 2/9. Token 1 was drawn."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).log().requires_grad_()
    return logits, Kept.of(packed([[0, 1, 2]], 4), device=torch.device("cpu")), torch.tensor([1])


def test_log_prob_and_gradient_of_four_tokens() -> None:
    logits, kept, targets = four_tokens()
    logprobs, entropies = kept.logprobs(logits, targets, 1.0, entropy_gradient=False)
    assert logprobs.tolist() == pytest.approx([math.log(3 / 9)])
    assert entropies.tolist() == pytest.approx([-sum(p / 9 * math.log(p / 9) for p in (4, 3, 2))])
    assert not entropies.requires_grad
    logprobs.sum().backward()
    # One for the drawn token minus its probability among the kept ones; what was cut away has no gradient.
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-4 / 9, 1 - 3 / 9, -2 / 9, 0.0])


def test_temperature_comes_before_the_sum_over_the_set() -> None:
    logits, kept, targets = four_tokens()
    logprobs, _ = kept.logprobs(logits, targets, 0.5, entropy_gradient=False)  # squares: 16, 9, 4
    assert logprobs.tolist() == pytest.approx([math.log(9 / 29)])
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-32 / 29, 2 - 18 / 29, -8 / 29, 0.0])


def test_the_gradient_of_the_entropy_stays_in_the_set() -> None:
    logits, kept, targets = four_tokens()
    _, entropies = kept.logprobs(logits, targets, 1.0, entropy_gradient=True)
    entropies.sum().backward()
    entropy = entropies.item()
    assert logits.grad is not None
    # dH/dz = -p (ln p + H)
    assert logits.grad[0].tolist() == pytest.approx(
        [*(-p / 9 * (math.log(p / 9) + entropy) for p in (4, 3, 2)), 0.0], abs=1e-6
    )


def random_rows() -> tuple[Tensor, Kept, Tensor, Tensor]:
    """Logits [7, 19] far from 0, sets of 1 to 19 tokens, drawn tokens, and the logits with minus infinity elsewhere."""
    dice = np.random.default_rng(1)
    sets = [np.sort(dice.permutation(19)[: dice.integers(1, 20)]).tolist() for _ in range(7)]
    logits = torch.from_numpy(dice.normal(300, 5, (7, 19))).float()
    targets = torch.tensor([dice.choice(one) for one in sets])
    masked = torch.full_like(logits, -torch.inf)
    for row, one in enumerate(sets):
        masked[row, one] = logits[row, one]
    return logits, Kept.of(packed(sets, 19), device=torch.device("cpu")), targets, masked


def test_rows_with_sets_of_all_sizes_agree_with_a_masked_softmax() -> None:
    logits, kept, targets, masked = random_rows()
    expected = (masked / 0.7).log_softmax(-1)
    logprobs, entropies = kept.logprobs(logits, targets, 0.7, entropy_gradient=False)
    torch.testing.assert_close(logprobs, expected.gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        entropies, -(expected.exp() * expected.nan_to_num(neginf=0.0)).sum(-1), rtol=0, atol=2e-5
    )


def test_rows_may_be_split_and_chosen() -> None:
    logits, kept, targets, _ = random_rows()
    whole, _ = kept.logprobs(logits, targets, 1.0, entropy_gradient=False)
    parts = [
        part.logprobs(one, of, 1.0, entropy_gradient=False)[0]
        for part, one, of in zip(kept.split(3), torch.split(logits, 3), torch.split(targets, 3), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    rows = torch.tensor([5, 0, 6])
    some, _ = kept.at(rows).logprobs(logits[rows], targets[rows], 1.0, entropy_gradient=False)
    torch.testing.assert_close(some, whole[rows], rtol=0, atol=0)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of the largest float32 tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            if isinstance(one, Tensor) and one.dtype == torch.float32:
                self.elements = max(self.elements, one.numel())
        return result


def test_the_vocabulary_is_never_in_float32() -> None:
    layer = nn.Linear(8, 5000, bias=False).bfloat16()
    hidden, targets = torch.randn(6, 8).bfloat16(), torch.tensor([1] * 6)
    kept = Kept.of(packed([[1, 2, 4000]] * 6, 5000), device=torch.device("cpu"))
    with Largest() as seen:
        logprobs, _ = _chunk(
            layer, lambda logits: logits, hidden, targets, kept, temperature=0.9, entropy_gradient=False
        )
        logprobs.sum().backward()
    assert seen.elements == 18
    with Largest() as seen:
        _chunk(layer, lambda logits: logits, hidden, targets, None, temperature=0.9, entropy_gradient=False)
    assert seen.elements == 6 * 5000
