"""DAPO's techniques are independent switches: every subset of the five is a run, with the loss and filter it says.

One prompt, three responses of 1, 3 and 4 tokens (L_max 4, L_cache 2): right, wrong and long, truncated and wrong. Every
token's ratio is 1.25: beyond 1.2, within 1.28. Soft overlong punishment (eq. 13) of 3 tokens is (2 - 3) / 2 = -1/2, of
4 tokens -1.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from dapo_openrlhf.algorithm.loss import aggregate, clipped_surrogate
from dapo_openrlhf.algorithm.overlong import soft_overlong_punishment
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.batch import samples_of, weighted
from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup

ON_OFF = {
    "clip_higher": ("actor.eps_clip_low_high", [0.2, 0.28], [0.2, 0.2]),
    "dynamic_sampling": ("algo.dynamic_filtering_enable", True, False),
    "token_level": ("actor.loss_agg_mode", "token-mean", "seq-mean-token-mean"),
    "overlong_filtering": ("reward.overlong_filtering_enable", True, False),
    "soft_punishment": ("reward.overlong_buffer_len", 2, None),
}
SUBSETS = [frozenset(c) for size in range(6) for c in itertools.combinations(ON_OFF, size)]
LENGTHS = (1, 3, 4)


def group(rewards: list[float], *, right: tuple[bool, ...]) -> RolloutGroup:
    return RolloutGroup(
        id=0,
        prompt=Prompt(id=0, text="", label=""),
        prompt_length=1,
        rollouts=tuple(
            Rollout(length=length, truncated=length == 4, cut=False, correct=correct, reward=reward)
            for length, correct, reward in zip(LENGTHS, right, rewards, strict=True)
        ),
        oldest_version=PolicyVersion(0),
        newest_version=PolicyVersion(0),
        engine=0,
        tokens=None,
    )


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(sorted(subset)) or "none")
def test_any_subset_of_techniques_runs(subset: frozenset[str]) -> None:
    settings = {dotted: on if name in subset else off for name, (dotted, on, off) in ON_OFF.items()}
    nested: dict[str, dict[str, object]] = {
        "actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "d"}, "rollout": {"max_new_tokens": 4},
        "algo": {}, "reward": {},
    }  # fmt: skip
    for dotted, value in settings.items():
        section, key = dotted.split(".")
        nested[section][key] = value
    config = build_config(nested, source="test")

    # What the run's parts make of the settings.
    rewards = [
        rule
        + soft_overlong_punishment(
            length,
            max_length=config.rollout.max_new_tokens,
            buffer_length=config.reward.overlong_buffer_len or 0,
            factor=config.reward.overlong_penalty_factor,
        )
        for rule, length in zip((1.0, -1.0, -1.0), LENGTHS, strict=True)
    ]
    (samples,) = samples_of(
        [group(rewards, right=(True, False, False))],
        overlong_filtering=config.reward.overlong_filtering_enable,
        estimator=config.algo.advantage.estimator,
        version=0,
    )
    samples = weighted(samples, config.actor.loss_agg_mode, config.rollout.max_new_tokens)
    mask = torch.tensor([[float(s.trained and t < s.length) for t in range(4)] for s in samples])
    advantages = torch.tensor([[s.advantage] for s in samples])
    eps_low, eps_high = config.actor.eps_clip_low_high
    losses, _ = clipped_surrogate(
        torch.full_like(mask, 1.25), advantages, eps_low=eps_low, eps_high=eps_high, dual_clip=None
    )
    loss = aggregate(losses, mask, torch.tensor([[s.weight] for s in samples])).item()
    keeps = [
        GroupFilter(enabled=config.algo.dynamic_filtering_enable).judge(group(rewards, right=right)).keep
        for right in ((True, False, False), (True,) * 3, (False,) * 3)
    ]

    # And what each technique says by itself.
    assert keeps == ([True, False, False] if "dynamic_sampling" in subset else [True, True, True])
    # Rewards 1, -1.5, -2: mean -5/6, centred 11/6, -4/6, -7/6, variance (121 + 16 + 49) / 36 / 2 = 31/12;
    # or 1, -1, -1: mean -1/3, centred 4/3, -2/3, -2/3, variance 24/9 / 2 = 4/3.
    centred, variance = (
        ((11 / 6, -4 / 6, -7 / 6), 31 / 12) if "soft_punishment" in subset else ((4 / 3, -2 / 3, -2 / 3), 4 / 3)
    )
    right, wrong, truncated = (c / variance**0.5 for c in centred)
    # A right token is held at 1.2 or not; wrong ones have the larger loss, 1.25, either way.
    right_loss = -right * (1.25 if "clip_higher" in subset else 1.2)
    tokens = [[right_loss], [-1.25 * wrong] * 3, [-1.25 * truncated] * 4]
    if "overlong_filtering" in subset:
        tokens.pop()
    if "token_level" in subset:
        expected = sum(map(sum, tokens)) / sum(map(len, tokens))
    else:
        expected = sum(sum(response) / len(response) for response in tokens) / len(tokens)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_there_are_two_to_the_five() -> None:
    assert len(set(SUBSETS)) == 32
