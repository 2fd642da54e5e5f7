"""What a rank computes for each response before a step's first update (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dapo_openrlhf.algorithm.gae import gae, moments, token_rewards, whiten
from dapo_openrlhf.algorithm.kl import kl_estimate
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings
from dapo_openrlhf.pipeline.batch import Sample

SampleKey = tuple[int, int]
"""The indices (group, response) of a sample in the batch."""

PerSample = dict[SampleKey, Tensor]
"""For each response, a tensor [length] without gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Everything that is known per sample; a mapping is empty if it is not needed."""

    old_logprobs: PerSample = field(default_factory=dict)
    ref_logprobs: PerSample = field(default_factory=dict)
    values: PerSample = field(default_factory=dict)
    """Values before the step."""
    advantages: PerSample = field(default_factory=dict)
    returns: PerSample = field(default_factory=dict)
    logprobs: PerSample = field(default_factory=dict)
    """Log-probabilities from the newest update, under the weights being trained; written to a file if it is stopped."""
    version: int = 0
    """Version of the weights at the start of the step."""
    largest_square: float = math.inf
    """Squared log importance weight above which the step's tokens are masked, where that depends on the whole batch."""


def key_of(sample: Sample) -> SampleKey:
    """The key of a sample, which is the same in every update."""
    return sample.group, sample.index


def remember(known: PerSample, samples: Sequence[Sample], rows: Tensor) -> None:
    """Store the rows [B, T] of a micro-batch."""
    for row, sample in enumerate(samples):
        known[key_of(sample)] = rows[row, : sample.length].detach()


def recall(known: Mapping[SampleKey, Tensor], samples: Sequence[Sample], *, like: Tensor) -> Tensor:
    """Rows [B, T] of a micro-batch, 0 beyond a response; shape and device are those of ``like``."""
    rows = torch.zeros_like(like, requires_grad=False)
    for row, sample in enumerate(samples):
        rows[row, : sample.length] = known[key_of(sample)]
    return rows


def token_advantages(
    samples: Sequence[Sample],
    settings: AdvantageSettings,
    *,
    old_logprobs: Mapping[SampleKey, Tensor],
    ref_logprobs: Mapping[SampleKey, Tensor],
    values: Mapping[SampleKey, Tensor],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[PerSample, PerSample]:
    """Advantages and returns of a rank's samples, in which a sample occurs as often as it is trained.

    ``old_logprobs`` and ``ref_logprobs`` are needed for a KL in the reward, ``values`` for a critic. ``sum_over_ranks``
    adds up a float64 tensor: every rank must call this, even if all its samples are masked. The computation runs on the
    CPU, because the recursion along a response is many small operations.
    """
    times = Counter(map(key_of, samples))
    unique = list({key_of(sample): sample for sample in samples}.values())
    lengths = torch.tensor([sample.length for sample in unique])
    present = (torch.arange(int(lengths.max())) < lengths[:, None]).float()
    nothing = torch.zeros_like(present)

    def padded(known: Mapping[SampleKey, Tensor]) -> Tensor:
        return pad_sequence([known[key_of(sample)].float().cpu() for sample in unique], batch_first=True)

    kl = nothing
    if settings.kl_coef > 0:
        kl = kl_estimate(padded(old_logprobs), padded(ref_logprobs), estimator=settings.kl_estimator)
    credits = torch.tensor([sample.advantage for sample in unique])
    rewards = token_rewards(credits, kl, present, kl_coef=settings.kl_coef)
    advantages, returns = gae(
        rewards,
        padded(values) if settings.critic else nothing,
        present,
        gamma=settings.gamma,
        lambd=settings.lambd,
    )
    if settings.whitened:
        trained = torch.tensor([float(sample.trained * times[key_of(sample)]) for sample in unique])
        totals = sum_over_ranks(moments(advantages, present * trained[:, None]))
        advantages = whiten(advantages, totals, scale=not settings.no_std_norm)
    by_sample: tuple[PerSample, PerSample] = {}, {}
    for known, rows in zip(by_sample, (advantages, returns), strict=True):
        remember(known, unique, rows)
    return by_sample
