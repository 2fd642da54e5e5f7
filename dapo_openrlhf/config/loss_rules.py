"""Rules about combinations of the policy loss and the correction of off-policy samples (standard library)."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.algorithm.choices import ESTIMATORS, POLICY_LOSSES
from dapo_openrlhf.config.settings import Config


def impossible_losses(config: Config) -> Iterator[str]:
    """Yield a sentence for each combination of settings that cannot run, or would not mean what it says."""
    actor, loss = config.actor, config.actor.policy_loss_type
    traits = POLICY_LOSSES[loss]
    if actor.dual_clip is not None and not traits.dual_clip:
        yield f"actor.dual_clip: {actor.dual_clip:g} has no meaning for actor.policy_loss_type {loss}; use null"
    if traits.whole_response:
        yield from _impossible_for_whole_responses(config)
    elif traits.of_response and actor.loss_agg_mode == "token-mean":
        yield (
            f"actor.loss_agg_mode: token-mean does not go with actor.policy_loss_type {loss}, whose loss is a mean over "
            "responses (OpenRLHF takes that without saying so); use seq-mean-token-mean"
        )
    yield from _impossible_correction(config)


def _impossible_for_whole_responses(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting that an objective with one number per response cannot have."""
    loss, mode = config.actor.policy_loss_type, config.actor.loss_agg_mode
    advantage, kl = config.algo.advantage, config.algo.kl
    if mode != "seq-mean-token-mean":
        yield (
            f"actor.loss_agg_mode: {mode} does not go with actor.policy_loss_type {loss}, whose loss is one number per "
            "response and a mean over responses; use seq-mean-token-mean"
        )
    of_tokens = (
        f"gives tokens of a response different advantages, where actor.policy_loss_type {loss} takes one for all"
    )
    if ESTIMATORS[advantage.estimator].critic:
        yield f"algo.advantage.estimator: {advantage.estimator} {of_tokens}; use group_norm, or policy_loss_type ppo"
    elif advantage.gamma != 1:
        yield f"algo.advantage.gamma: {advantage.gamma:g} {of_tokens}; use 1"
    if kl.init_coef > 0 and not kl.use_loss:
        yield f"algo.kl.use_loss: false with algo.kl.init_coef {kl.init_coef:g} {of_tokens}; use true, with estimator k2 or k3"


def _impossible_correction(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting of the correction that contradicts another."""
    advantage, loss = config.algo.advantage, config.actor.policy_loss_type
    level, mode, gating = advantage.is_correction_level, advantage.is_correction_mode, advantage.is_correction_gating
    low, high = advantage.is_correction_threshold
    if not 0 <= low < high:
        yield f"algo.advantage.is_correction_threshold: {low} {high} is not a range; use 0 <= LOW < HIGH"
    if level == "seq" and mode == "clip":
        yield (
            "algo.advantage.is_correction_mode: clip has no meaning for algo.advantage.is_correction_level seq, which keeps "
            "or drops whole responses; use mask, or level token"
        )
    for key, given in (("is_correction_gating", gating != "ratio"), ("is_correction_cap", advantage.is_correction_cap)):
        if given and level == "off":
            yield f"algo.advantage.{key}: has nothing to correct with algo.advantage.is_correction_level off; use token or seq"
        elif given and POLICY_LOSSES[loss].of_response:
            yield (
                f"algo.advantage.{key}: has no meaning for actor.policy_loss_type {loss}, which corrects by its denominator "
                "and has no weights; leave it out, or use policy_loss_type ppo"
            )
        elif given and mode == "clip" and level == "token":
            yield f"algo.advantage.{key}: goes with algo.advantage.is_correction_mode mask, not with clip; use mask"
    if gating != "ratio" and low > 0:
        yield (
            f"algo.advantage.is_correction_threshold: {low:g} {high:g} has a lower bound, which is_correction_gating {gating} "
            f"does not know, because 0 means that nothing differs; use {high:g} alone"
        )
    if gating == "second_moment":
        yield from _impossible_second_moment(config)


def _impossible_second_moment(config: Config) -> Iterator[str]:
    level, old = config.algo.advantage.is_correction_level, config.async_.old_logprobs
    if level == "seq":
        yield (
            "algo.advantage.is_correction_level: seq does not go with is_correction_gating second_moment, which drops tokens; "
            "use token"
        )
    if old != "recompute":
        yield (
            f"async.old_logprobs: {old} leaves is_correction_gating second_moment nothing to measure before a step's first "
            "update; use recompute"
        )
