"""The closed choices of the algorithm and of its forward pass, by OpenRLHF's names where it has them (standard
library).

Every choice is independent of the others; :mod:`dapo_openrlhf.config.presets` gives the usual combinations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EstimatorName = Literal["group_norm", "dr_grpo", "rloo", "reinforce_baseline", "reinforce", "gae"]
"""Values of ``algo.advantage.estimator``."""

PolicyLossType = Literal["ppo", "gspo"]
"""Values of ``actor.policy_loss_type``: the ratio of each token, or of the response (GSPO)."""

LossAggMode = Literal["token-mean", "seq-mean-token-mean", "prompt-mean-token-mean", "seq-mean-token-sum-norm"]
"""Values of ``actor.loss_agg_mode``: the weight of each token in an update's loss."""

KlEstimator = Literal["k1", "k2", "k3"]
"""Values of ``algo.kl.estimator``."""

OldLogprobs = Literal["recompute", "rollout"]
"""Values of ``async.old_logprobs``: whose log-probs are the ratio's denominator, the trainer's or the engine's."""

CorrectionLevel = Literal["off", "token", "seq"]
"""Values of ``algo.advantage.is_correction_level``: whether importance weights are bounded by token or by response."""

CorrectionMode = Literal["clip", "mask"]
"""Values of ``algo.advantage.is_correction_mode``: what happens to importance weights outside the bounds."""

DataType = Literal["bf16", "fp16", "fp32"]
"""Values of ``ds.param_dtype`` and ``ds.grad_accum_dtype``."""

Attention = Literal["flash_attention_2", "sdpa"]
"""Values of ``ds.attn_implementation``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Properties of a kind of policy loss besides its ratio."""

    of_response: bool
    """Whether a response has a single ratio, whose denominator corrects for off-policy samples in place of weights."""


POLICY_LOSSES: Mapping[PolicyLossType, PolicyLoss] = {
    "ppo": PolicyLoss(of_response=False),
    "gspo": PolicyLoss(of_response=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """Properties of an advantage estimator besides its formula."""

    critic: bool = False
    """Whether a value model is trained as well."""
    whitened: bool = False
    """Whether advantages are centred and scaled over all trained tokens of the batch."""
    discounted: bool = False
    """Whether ``algo.advantage.gamma`` may be below 1."""
    smallest_group: int = 2
    """Fewest responses per prompt that the estimator needs."""


ESTIMATORS: Mapping[EstimatorName, Estimator] = {
    "group_norm": Estimator(),
    "dr_grpo": Estimator(),
    "rloo": Estimator(),
    "reinforce_baseline": Estimator(whitened=True),
    "reinforce": Estimator(whitened=True, discounted=True, smallest_group=1),
    "gae": Estimator(critic=True, whitened=True, discounted=True, smallest_group=1),
}
