"""What an algorithm, and the forward pass below it, may be made of, by OpenRLHF's names where it has one (standard library only).

Every choice is independent of the others; :mod:`dapo_openrlhf.config.presets` gives the usual combinations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EstimatorName = Literal["group_norm", "dr_grpo", "rloo", "reinforce_baseline", "reinforce", "gae"]
"""``algo.advantage.estimator``"""

PolicyLossType = Literal["ppo", "gspo"]
"""``actor.policy_loss_type``: the ratio of each token, or of the response (GSPO)."""

LossAggMode = Literal["token-mean", "seq-mean-token-mean", "prompt-mean-token-mean", "seq-mean-token-sum-norm"]
"""``actor.loss_agg_mode``: what each token weighs in an update's loss."""

KlEstimator = Literal["k1", "k2", "k3"]
"""``algo.kl.estimator``"""

OldLogprobs = Literal["recompute", "rollout"]
"""``async.old_logprobs``: whose log-probs are the ratio's denominator, the trainer's or the engine's."""

CorrectionLevel = Literal["off", "token", "seq"]
"""``algo.advantage.is_correction_level``: what an importance weight is bounded by."""

CorrectionMode = Literal["clip", "mask"]
"""``algo.advantage.is_correction_mode``: what becomes of importance weights out of bounds."""

DataType = Literal["bf16", "fp16", "fp32"]
"""``ds.param_dtype`` and ``ds.grad_accum_dtype``"""

Attention = Literal["flash_attention_2", "sdpa"]
"""``ds.attn_implementation``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """What a kind of policy loss is besides its ratio."""

    of_response: bool
    """A response has one ratio, whose denominator corrects for off-policy samples in place of weights."""


POLICY_LOSSES: Mapping[PolicyLossType, PolicyLoss] = {
    "ppo": PolicyLoss(of_response=False),
    "gspo": PolicyLoss(of_response=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """What an advantage estimator needs and does besides its formula."""

    critic: bool = False
    """A value model is trained along."""
    whitened: bool = False
    """Advantages are centred and scaled over all trained tokens of the batch."""
    discounted: bool = False
    """``algo.advantage.gamma`` may be below 1."""
    smallest_group: int = 2
    """Fewest responses per prompt that leave something to compare with."""


ESTIMATORS: Mapping[EstimatorName, Estimator] = {
    "group_norm": Estimator(),
    "dr_grpo": Estimator(),
    "rloo": Estimator(),
    "reinforce_baseline": Estimator(whitened=True),
    "reinforce": Estimator(whitened=True, discounted=True, smallest_group=1),
    "gae": Estimator(critic=True, whitened=True, discounted=True, smallest_group=1),
}
