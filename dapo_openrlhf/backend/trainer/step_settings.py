"""What a trainer rank's step depends on, as the controller hands it over (standard library)."""

from __future__ import annotations

from dataclasses import dataclass

from dapo_openrlhf.algorithm.choices import CorrectionLevel, CorrectionMode, KlEstimator, OldLogprobs, PolicyLossType


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What the loss depends on; names and values as in the configuration."""

    eps_clip_low_high: tuple[float, float]
    dual_clip: float | None
    policy_loss_type: PolicyLossType
    kl_coef: float
    """Of the KL in the loss; 0 for none."""
    kl_estimator: KlEstimator
    old_logprobs: OldLogprobs
    is_correction_level: CorrectionLevel
    is_correction_mode: CorrectionMode
    is_correction_threshold: tuple[float, float]
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What happens to updates with numbers that are not finite."""

    max_bad_updates: int
    """So many in a row are the last ones."""
    folder: str
    """Absolute; where their batches are written down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSettings:
    """How responses' credits become tokens' advantages; names and values as in the configuration."""

    critic: bool
    whitened: bool
    gamma: float
    lambd: float
    no_std_norm: bool
    kl_coef: float
    """Of the KL in the reward; 0 for none."""
    kl_estimator: KlEstimator

    @property
    def by_token(self) -> bool:
        """Whether a response's tokens may differ, or the batch matters; else every token has the response's credit."""
        return self.critic or self.whitened or self.kl_coef > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All of it."""

    loss: LossSettings
    advantages: AdvantageSettings
    guard: GuardSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """With what a rank begins, and how far it is to go."""

    total_updates: int
    """Gradient steps of the whole run, over which the schedule goes."""
    updates_done: int
    """Where to enter the schedule."""
    checkpoint: str | None
    """Folder of a checkpoint whose moments and full-precision weights to go on with."""
    reference: str | None
    """The model that a KL is measured to."""
