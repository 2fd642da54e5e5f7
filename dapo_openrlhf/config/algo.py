"""Settings of the algorithm: advantage, KL, dynamic sampling (pydantic)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, FiniteFloat

from dapo_openrlhf.algorithm.choices import CorrectionLevel, CorrectionMode, EstimatorName, KlEstimator
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import Fraction, PositiveInt, Section


def _bounds(value: object) -> object:
    """HIGH alone is an upper bound only."""
    match value:
        case int() | float():
            return (0.0, value)
        case [high]:
            return (0.0, high)
    return value


class AdvantageSection(Section):
    estimator: EstimatorName = PAPER["algo.advantage.estimator"]
    """``group_norm``: reward minus the group's mean, over its standard deviation (DAPO eq. 9); ``dr_grpo``: minus the
    mean only (arXiv 2503.20783); ``rloo``: minus the mean of the others (arXiv 2402.14740); ``gae``: with a critic
    (arXiv 1506.02438, eq. 16); ``reinforce_baseline``, ``reinforce``: minus the group's mean, or the reward itself,
    whitened over the batch (arXiv 2501.03262)."""
    gamma: Fraction = 1.0
    """Discount of ``gae`` and ``reinforce``."""
    lambd: Fraction = 1.0
    """Lambda of ``gae``: 1 trusts rewards only, 0 values only."""
    no_std_norm: bool = False
    """Centre advantages over the batch without scaling them, with the estimators that whiten."""
    is_correction_level: CorrectionLevel = "token"
    """Each token's importance weight old/rollout corrects for what engine and trainer, or two versions, disagree on:
    ``off`` not at all, ``token`` bounded by itself, ``seq`` only in responses whose geometric mean is within the bounds.
    With ``gspo`` the rollout is the ratio's denominator instead."""
    is_correction_mode: CorrectionMode = "clip"
    """Outside the threshold: ``clip`` truncates a token's weight, ``mask`` sets it, or the response's, to zero."""
    is_correction_threshold: Annotated[tuple[float, float], BeforeValidator(_bounds), Field(strict=False)] = (0.0, 2.0)
    """LOW HIGH bounds of the weight, or HIGH alone. ``gspo`` corrects without weights, and has no use for them."""


class KlSection(Section):
    init_coef: Annotated[float, Field(ge=0)] = PAPER["algo.kl.init_coef"]
    """Coefficient of the KL to the reference policy, which is the model at the start; 0: none, and no reference model."""
    use_loss: bool = False
    """KL as a term of the loss (GRPO eq. 3; always a mean over all tokens, as in OpenRLHF), or of each token's reward (PPO;
    arXiv 1909.08593, eq. 2)."""
    estimator: KlEstimator = "k1"
    """Log ratio, half its square, or the unbiased positive one (GRPO eq. 4)."""


class AlgoSection(Section):
    advantage: AdvantageSection = AdvantageSection()
    kl: KlSection = KlSection()
    dynamic_filtering_enable: bool = PAPER["algo.dynamic_filtering_enable"]
    """Dynamic sampling (eq. 11): train only groups with 0 < accuracy < 1, refill until the batch is full."""
    dynamic_filtering_range: Annotated[tuple[FiniteFloat, FiniteFloat], Field(strict=False)] | None = None
    """LOW HIGH: groups whose mean score lies between them are trained, none of both included. Scores are 1 for right and
    0 for wrong, or what a file's or an endpoint's reward gives as ``scores``. null takes groups that are neither all right
    nor all wrong by ``reward.correct_from`` (eq. 11), whatever the scale of the scores."""
    max_filtered_batches: PositiveInt = 20
    """Stop with a diagnosis when this many batches' worth of groups were dropped while one batch was filled."""
