"""Settings of a trainer rank's step, as the controller passes them on (standard library)."""

from __future__ import annotations

from dataclasses import dataclass

from dapo_openrlhf.algorithm.choices import (
    CorrectionGating,
    CorrectionLevel,
    CorrectionMode,
    KlEstimator,
    OldLogprobs,
    PolicyLossType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Settings of the loss; names and values are those of the configuration."""

    eps_clip_low_high: tuple[float, float]
    dual_clip: float | None
    policy_loss_type: PolicyLossType
    kl_coef: float
    """Coefficient of the KL in the loss; 0 for none."""
    kl_estimator: KlEstimator
    old_logprobs: OldLogprobs
    is_correction_level: CorrectionLevel
    is_correction_mode: CorrectionMode
    is_correction_threshold: tuple[float, float]
    temperature: float
    dppo_delta: float = 0.15
    sapo_tau: tuple[float, float] = (1.05, 1.0)
    is_correction_gating: CorrectionGating = "ratio"
    is_correction_cap: float | None = None
    kl_unbiased: bool = False
    entropy_coef: float = 0.0
    aux_loss_coef: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """How updates with numbers that are not finite are handled."""

    max_bad_updates: int
    """Training is given up after this many such updates in a row."""
    folder: str
    """Absolute path of the folder that their batches are written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSettings:
    """How responses' credits become tokens' advantages; names and values are those of the configuration."""

    critic: bool
    whitened: bool
    gamma: float
    lambd: float
    no_std_norm: bool
    kl_coef: float
    """Coefficient of the KL in the reward; 0 for none."""
    kl_estimator: KlEstimator

    @property
    def by_token(self) -> bool:
        """Whether advantages differ within a response or depend on the batch; else every token has the response's credit."""
        return self.critic or self.whitened or self.kl_coef > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All settings of a trainer rank's step."""

    loss: LossSettings
    advantages: AdvantageSettings
    guard: GuardSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a rank starts from, and how far it is to go."""

    total_updates: int
    """Gradient steps of the whole run, which the schedule covers."""
    updates_done: int
    """Gradient steps done before, after which the schedule continues."""
    first_step: int
    """Rollout steps done before, which is the version of the weights at the beginning."""
    checkpoint: str | None
    """Folder of a checkpoint whose moments and full-precision weights are resumed."""
    reference: str | None
    """The reference model, to which a KL is measured."""
    trust_remote_code: bool = False
    """Whether Python that comes with the models may run."""
