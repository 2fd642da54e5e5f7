"""Settings of the algorithm: advantage, KL, dynamic sampling (pydantic)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, FiniteFloat

from dapo_openrlhf.algorithm.choices import (
    CorrectionGating,
    CorrectionLevel,
    CorrectionMode,
    CorrectionName,
    EstimatorName,
    KlEstimator,
)
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import Fraction, PositiveFloat, PositiveInt, Section


def _bounds(value: object) -> object:
    """Complete HIGH alone to the bounds (0, HIGH)."""
    match value:
        case int() | float():
            return (0.0, value)
        case [high]:
            return (0.0, high)
    return value


def _off(value: object) -> object:
    """The word ``off``, which YAML reads as false."""
    return "off" if value is False else value


class AdvantageSection(Section):
    estimator: EstimatorName = PAPER["algo.advantage.estimator"]
    """``group_norm``: reward minus the group's mean, over its standard deviation (DAPO eq. 9); ``dr_grpo``: minus the
    mean only (arXiv 2503.20783); ``rloo``: minus the mean of the others (arXiv 2402.14740); ``gae``: with a critic
    (arXiv 1506.02438, eq. 16); ``reinforce_baseline``, ``reinforce``: minus the group's mean, or the reward itself,
    whitened over the batch (arXiv 2501.03262); ``flash_reinforce``: minus the whole batch's mean, for single
    responses."""
    gamma: Fraction = 1.0
    """Discount of ``gae`` and ``reinforce``."""
    lambd: Fraction = 1.0
    """Lambda of ``gae``: 1 trusts rewards only, 0 values only."""
    no_std_norm: bool = False
    """Whether estimators that whiten just centre advantages over the batch, without scaling them."""
    is_correction: CorrectionName | None = None
    """Name of a correction, which sets those of the next five settings that the run does not: ``tis`` truncates each
    token's weight at 2, which is the default; ``icepop`` drops tokens whose weight is outside 0.5 to 5 (arXiv
    2510.18855); ``mis`` drops responses whose geometric mean weight is outside 0.99 to 1.01, and truncates the others'
    weights at 2; ``m2po`` drops the tokens of the batch with the largest squared log weights, until the others' mean is
    at most 0.04 (arXiv 2510.01161)."""
    is_correction_level: Annotated[CorrectionLevel, BeforeValidator(_off)] = "token"
    """How the importance weight old/rollout of each token corrects for differences between engine and trainer, or
    between two policy versions: ``off`` does not correct, ``token`` bounds each token's weight on its own, ``seq``
    corrects only in responses whose geometric mean weight is within the bounds. With ``gspo`` and ``gmpo`` the rollout
    policy is the denominator of the ratio instead."""
    is_correction_mode: CorrectionMode = "clip"
    """What happens to weights outside the threshold: ``clip`` truncates a token's weight, ``mask`` sets the weight of
    the token, or of the response, to zero."""
    is_correction_threshold: Annotated[tuple[float, float], BeforeValidator(_bounds), Field(strict=False)] = (0.0, 2.0)
    """LOW HIGH bounds of the weight, or of what ``is_correction_gating`` says; HIGH alone is 0 HIGH. ``gspo`` and ``gmpo``
    correct without weights, and ignore them."""
    is_correction_gating: CorrectionGating = "ratio"
    """What the threshold bounds: the weight (``ratio``); the divergence of engine and trainer that takes each token as
    sampled or not, by a KL or a total variation (``binary_kl``, ``tv``); or the mean squared log weight of the step's
    batch (``second_moment``, M2PO), for which one more forward pass is made where a step has a single update."""
    is_correction_cap: PositiveFloat | None = None
    """Largest weight of a token that ``mask`` keeps, to which larger ones are truncated; null truncates none, as in
    OpenRLHF."""


class KlSection(Section):
    init_coef: Annotated[float, Field(ge=0)] = PAPER["algo.kl.init_coef"]
    """Coefficient of the KL to the reference policy, which is the initial model; 0 means no KL and no reference
    model."""
    use_loss: bool = False
    """Whether the KL is a term of the loss (GRPO eq. 3; always a mean over all tokens, as in OpenRLHF) or of each
    token's reward (PPO; arXiv 1909.08593, eq. 2)."""
    estimator: KlEstimator = "k1"
    """Estimate of the KL per token: the log ratio (``k1``), half its square (``k2``), or the unbiased one that is never
    negative (``k3``, GRPO eq. 4)."""
    unbiased_gradient: bool = False
    """With ``use_loss``: keep the estimate's value, but take the gradient of KL(policy || reference) itself, weighted by the
    ratio, which is the same for all estimators."""


class AlgoSection(Section):
    advantage: AdvantageSection = AdvantageSection()
    kl: KlSection = KlSection()
    dynamic_filtering_enable: bool = PAPER["algo.dynamic_filtering_enable"]
    """Dynamic sampling (eq. 11): train only groups with 0 < accuracy < 1, and sample more until the batch is full."""
    dynamic_filtering_range: Annotated[tuple[FiniteFloat, FiniteFloat], Field(strict=False)] | None = None
    """LOW HIGH: train groups whose mean score lies between them, both bounds excluded. Scores are 1 for right and 0 for
    wrong, or what a file's or an endpoint's reward gives as ``scores``. null trains groups that are neither all right
    nor all wrong by ``reward.correct_from`` (eq. 11), whatever the scale of the scores."""
    max_filtered_batches: PositiveInt = 20
    """Stop with a diagnosis when this many batches' worth of groups were dropped while one batch was filled."""
