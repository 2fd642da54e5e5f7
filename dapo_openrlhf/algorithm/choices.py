"""The closed choices of the algorithm and of its forward pass, by OpenRLHF's names where it has them (standard
library).

Every choice is independent of the others; :mod:`dapo_openrlhf.config.presets` gives the usual combinations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EstimatorName = Literal["group_norm", "dr_grpo", "rloo", "reinforce_baseline", "reinforce", "flash_reinforce", "gae"]
"""Values of ``algo.advantage.estimator``."""

PolicyLossType = Literal["ppo", "gspo", "cispo", "dppo_tv", "sapo", "gmpo"]
"""Values of ``actor.policy_loss_type``; :mod:`dapo_openrlhf.algorithm.objective` has their formulas."""

LossAggMode = Literal["token-mean", "seq-mean-token-mean", "prompt-mean-token-mean", "seq-mean-token-sum-norm"]
"""Values of ``actor.loss_agg_mode``: the weight of each token in an update's loss."""

KlEstimator = Literal["k1", "k2", "k3"]
"""Values of ``algo.kl.estimator``."""

OldLogprobs = Literal["recompute", "rollout", "interpolate"]
"""Values of ``async.old_logprobs``: whose log-probs are the ratio's denominator, the trainer's, the engine's, or a mean of
both by the versions of their weights (A-3PO)."""

CorrectionLevel = Literal["off", "token", "seq"]
"""Values of ``algo.advantage.is_correction_level``: whether importance weights are bounded by token or by response."""

CorrectionMode = Literal["clip", "mask"]
"""Values of ``algo.advantage.is_correction_mode``: what happens to importance weights outside the bounds."""

CorrectionGating = Literal["ratio", "binary_kl", "tv", "second_moment"]
"""Values of ``algo.advantage.is_correction_gating``: the quantity that the bounds are for."""

CorrectionName = Literal["tis", "icepop", "mis", "m2po"]
"""Values of ``algo.advantage.is_correction``: names of usual combinations."""

DataType = Literal["bf16", "fp16", "fp32"]
"""Values of ``ds.param_dtype`` and ``ds.grad_accum_dtype``."""

Attention = Literal["flash_attention_2", "sdpa"]
"""Values of ``ds.attn_implementation``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Properties of a kind of policy loss besides its ratio."""

    of_response: bool = False
    """Whether a response has a single ratio, whose denominator corrects for off-policy samples in place of weights."""
    dual_clip: bool = False
    """Whether ``actor.dual_clip`` has a meaning."""
    whole_response: bool = False
    """Whether the objective is a single number per response, whose tokens must have one advantage, and of which the loss is
    a mean over responses."""


POLICY_LOSSES: Mapping[PolicyLossType, PolicyLoss] = {
    "ppo": PolicyLoss(dual_clip=True),
    "gspo": PolicyLoss(of_response=True, dual_clip=True),
    "cispo": PolicyLoss(),
    "dppo_tv": PolicyLoss(),
    "sapo": PolicyLoss(),
    "gmpo": PolicyLoss(of_response=True, whole_response=True),
}

CORRECTIONS: Mapping[CorrectionName, Mapping[str, object]] = {
    "tis": {
        "is_correction_level": "token",
        "is_correction_mode": "clip",
        "is_correction_gating": "ratio",
        "is_correction_threshold": (0.0, 2.0),
        "is_correction_cap": None,
    },
    "icepop": {
        "is_correction_level": "token",
        "is_correction_mode": "mask",
        "is_correction_gating": "ratio",
        "is_correction_threshold": (0.5, 5.0),  # arXiv 2510.18855
        "is_correction_cap": None,
    },
    "mis": {
        "is_correction_level": "seq",
        "is_correction_mode": "mask",
        "is_correction_gating": "ratio",
        "is_correction_threshold": (0.99, 1.01),  # of the geometric mean, as peers' recipes have it
        "is_correction_cap": 2.0,
    },
    "m2po": {
        "is_correction_level": "token",
        "is_correction_mode": "mask",
        "is_correction_gating": "second_moment",
        "is_correction_threshold": (0.0, 0.04),  # arXiv 2510.01161: the bound of M2
        "is_correction_cap": None,
    },
}
"""The settings of ``algo.advantage`` that each name stands for: truncated importance sampling, IcePop, geometric rejection
of responses with truncation of the tokens of the others, and M2PO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """Properties of an advantage estimator besides its formula."""

    critic: bool = False
    """Whether a value model is trained as well."""
    whitened: bool = False
    """Whether advantages are centred and scaled over all trained tokens of the batch."""
    discounted: bool = False
    """Whether ``algo.advantage.gamma`` may be below 1."""
    batch_baseline: bool = False
    """Whether the mean reward of the whole batch is subtracted."""
    smallest_group: int = 2
    """Fewest responses per prompt that the estimator needs."""


ESTIMATORS: Mapping[EstimatorName, Estimator] = {
    "group_norm": Estimator(),
    "dr_grpo": Estimator(),
    "rloo": Estimator(),
    "reinforce_baseline": Estimator(whitened=True),
    "reinforce": Estimator(whitened=True, discounted=True, smallest_group=1),
    "flash_reinforce": Estimator(batch_baseline=True, smallest_group=1),
    "gae": Estimator(critic=True, whitened=True, discounted=True, smallest_group=1),
}
