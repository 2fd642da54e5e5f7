"""Translates the configuration into the settings of a trainer rank's step and of how batches are divided."""

from __future__ import annotations

from dapo_openrlhf.algorithm.choices import ESTIMATORS
from dapo_openrlhf.backend.run.actor_settings import model_path
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.trainer.step_settings import (
    AdvantageSettings,
    Beginning,
    GuardSettings,
    LossSettings,
    TrainSettings,
)
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.batch import PlanSettings


def train_settings(config: Config, inputs: Inputs) -> TrainSettings:
    """The settings of a rank's training step."""
    advantage, kl = config.algo.advantage, config.algo.kl
    estimator = ESTIMATORS[advantage.estimator]
    return TrainSettings(
        loss=LossSettings(
            eps_clip_low_high=config.actor.eps_clip_low_high,
            dual_clip=config.actor.dual_clip,
            policy_loss_type=config.actor.policy_loss_type,
            kl_coef=kl.init_coef if kl.use_loss else 0.0,
            kl_estimator=kl.estimator,
            old_logprobs=config.async_.old_logprobs,
            is_correction_level=advantage.is_correction_level,
            is_correction_mode=advantage.is_correction_mode,
            is_correction_threshold=advantage.is_correction_threshold,
            temperature=config.rollout.temperature,
            dppo_delta=config.actor.dppo_delta,
            sapo_tau=config.actor.sapo_tau,
            is_correction_gating=advantage.is_correction_gating,
            is_correction_cap=advantage.is_correction_cap,
            kl_unbiased=kl.unbiased_gradient,
            entropy_coef=config.actor.entropy_coef,
            aux_loss_coef=config.actor.aux_loss_coef,
        ),
        advantages=AdvantageSettings(
            critic=estimator.critic,
            whitened=estimator.whitened,
            gamma=advantage.gamma,
            lambd=advantage.lambd,
            no_std_norm=advantage.no_std_norm,
            kl_coef=0.0 if kl.use_loss else kl.init_coef,
            kl_estimator=kl.estimator,
        ),
        guard=GuardSettings(max_bad_updates=config.train.max_bad_updates, folder=str(inputs.bad_batches.resolve())),
    )


def beginning(config: Config, inputs: Inputs) -> Beginning:
    """What ranks start from."""
    return Beginning(
        total_updates=config.gradient_steps,
        updates_done=inputs.first_step * config.updates_per_step,
        first_step=inputs.first_step,
        checkpoint=None if inputs.checkpoint is None else str(inputs.checkpoint.resolve()),
        reference=model_path(config) if config.algo.kl.init_coef > 0 else None,  # also after a resume
        trust_remote_code=config.actor.trust_remote_code,
    )


def plan_settings(config: Config) -> PlanSettings:
    """How each batch is divided."""
    return PlanSettings(
        train_batch_size=config.train.batch_size,
        max_epochs=config.train.max_epochs,
        max_tokens=config.train.max_tokens_per_gpu,
        overlong_filtering=config.reward.overlong_filtering_enable,
        seed=config.train.seed,
        estimator=config.algo.advantage.estimator,
        loss_agg_mode=config.actor.loss_agg_mode,
        longest_response=config.rollout.max_new_tokens,
        clip_range=config.reward.clip_range,
    )
