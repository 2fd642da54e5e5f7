"""What a trainer rank works out about its responses: by hand, and alike however the batch is dealt to ranks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.backend.trainer.per_sample import PerSample, key_of, recall, remember, token_advantages
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings
from dapo_openrlhf.pipeline.batch import Sample

PPO = AdvantageSettings(
    critic=True, whitened=True, gamma=0.9, lambd=0.5, no_std_norm=False, kl_coef=0.1, kl_estimator="k1"
)


def sample(group: int, index: int, length: int, credit: float, *, trained: bool = True) -> Sample:
    return Sample(group=group, index=index, prompt_length=1, length=length, advantage=credit, trained=trained)


def alone(tensor: Tensor) -> Tensor:
    return tensor


def rows(known: PerSample) -> dict[tuple[int, int], list[float]]:
    return {key: row.tolist() for key, row in known.items()}


def test_rows_come_back_where_they_belong() -> None:
    samples = [sample(0, 0, 3, 1.0), sample(0, 1, 1, -1.0), sample(4, 2, 2, 0.0)]
    known: PerSample = {}
    remember(known, samples, torch.arange(9.0).reshape(3, 3).requires_grad_())
    again = [samples[2], samples[1]]  # another micro-batch, of another width
    assert recall(known, again, like=torch.zeros(2, 2)).tolist() == [[6.0, 7.0], [3.0, 0.0]]
    assert not any(row.requires_grad for row in known.values())


def test_only_what_makes_tokens_differ_is_worked_out() -> None:
    plain = AdvantageSettings(
        critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0, kl_estimator="k1"
    )
    assert not plain.by_token
    assert PPO.by_token


def test_kl_in_the_reward_is_felt_by_the_tokens_before() -> None:
    # No critic: the credit of 2 at the end minus 0.1 times the KL to go. Log ratios (k1) 1, -2 and 3.
    settings = AdvantageSettings(
        critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.1, kl_estimator="k1"
    )
    advantages, _ = token_advantages(
        [sample(0, 0, 3, 2.0)],
        settings,
        old_logprobs={(0, 0): torch.tensor([-1.0, -3.0, -1.0])},
        ref_logprobs={(0, 0): torch.tensor([-2.0, -1.0, -4.0])},
        values={},
        sum_over_ranks=alone,
    )
    assert advantages[0, 0].tolist() == pytest.approx([2 - 0.2, 2 - 0.1, 2 - 0.3])


def test_without_std_norm_advantages_are_centred_only() -> None:
    # REINFORCE with a baseline over the batch: credits 3 (two tokens) and 0 (one token), mean over tokens 2.
    settings = AdvantageSettings(
        critic=False, whitened=True, gamma=1.0, lambd=1.0, no_std_norm=True, kl_coef=0.0, kl_estimator="k1"
    )
    advantages, _ = token_advantages(
        [sample(0, 0, 2, 3.0), sample(1, 0, 1, 0.0)],
        settings,
        old_logprobs={},
        ref_logprobs={},
        values={},
        sum_over_ranks=alone,
    )
    assert rows(advantages) == {(0, 0): [1.0, 1.0], (1, 0): [-2.0]}


def test_ppo_by_hand() -> None:
    # One response, credit 1, no KL at either token, values 0.5 and 1; gamma 0.9, lambda 0.5:
    #   delta_1 = 1 - 1 = 0, delta_0 = 0.9 - 0.5 = 0.4: advantages 0.4 and 0, returns 0.9 and 1.
    # Another, masked, must not move the mean 0.2 nor the deviation 0.2: whitened 1 and -1.
    # Its own: credit 0 and value 3 at its one token: -3, whitened (-3 - 0.2) / 0.2 = -16; return 0.
    samples = [sample(0, 0, 2, 1.0), sample(0, 1, 1, 0.0, trained=False)]
    same = {(0, 0): torch.zeros(2), (0, 1): torch.zeros(1)}
    advantages, returns = token_advantages(
        samples,
        PPO,
        old_logprobs=same,
        ref_logprobs=same,
        values={(0, 0): torch.tensor([0.5, 1.0]), (0, 1): torch.tensor([3.0])},
        sum_over_ranks=alone,
    )
    assert advantages[0, 0].tolist() == pytest.approx([1.0, -1.0], rel=1e-5)
    assert advantages[0, 1].tolist() == pytest.approx([-16.0], rel=1e-5)
    assert returns[0, 0].tolist() == pytest.approx([0.9, 1.0])
    assert returns[0, 1].tolist() == [0.0]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_whitening_does_not_depend_on_ranks_and_epochs(ranks: int, epochs: int) -> None:
    """In each epoch samples are dealt to ranks anew; the numbers are those of one rank that sees each once."""
    dice, generator = random.Random(0), torch.Generator().manual_seed(0)
    samples = [
        sample(group, index, dice.randint(1, 5), dice.uniform(-1, 1), trained=dice.random() < 0.8)
        for group, index in itertools.product(range(4), range(2))
    ]
    old, reference, values = (
        {key_of(s): torch.randn(s.length, generator=generator) for s in samples} for _ in range(3)
    )

    def work_out(share: Sequence[Sample], total: Tensor | None) -> tuple[PerSample, Tensor]:
        seen = []

        def sum_over_ranks(tensor: Tensor) -> Tensor:
            seen.append(tensor)
            return tensor if total is None else total

        advantages, _ = token_advantages(
            share, PPO, old_logprobs=old, ref_logprobs=reference, values=values, sum_over_ranks=sum_over_ranks
        )
        return advantages, seen[0]

    expected, _ = work_out(samples, None)
    shares: list[list[Sample]] = [[] for _ in range(ranks)]
    for _ in range(epochs):
        dice.shuffle(samples)
        for position, one in enumerate(samples):
            shares[position % ranks].append(one)
    total = torch.stack([work_out(share, None)[1] for share in shares]).sum(0)
    for share in shares:
        advantages, _ = work_out(share, total)
        assert set(advantages) == set(map(key_of, share))
        for key, row in advantages.items():
            assert torch.allclose(row, expected[key], atol=1e-5)
