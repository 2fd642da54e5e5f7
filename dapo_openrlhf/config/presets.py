"""Presets: the settings of an algorithm, which ``preset: NAME`` puts below a run's own file and command line.

A preset sets what defines the algorithm; the run's file sets the rest, and may change any of it. All presets run
asynchronously with a bound on staleness, so all keep ``async.max_staleness 1`` and the importance weights that correct
for it. The papers' runs are synchronous; to do the same, set ``async.max_staleness 0`` and
``algo.advantage.is_correction_level off``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PresetName = Literal["dapo", "dapo-paper", "dapo-recipe", "grpo", "ppo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The settings of one algorithm."""

    summary: str
    """What the algorithm is, and where it differs from its source, in one or two sentences."""
    settings: Mapping[str, Any]
    """Values of settings by their dotted names."""


PAPER: Mapping[str, Any] = {
    "actor.eps_clip_low_high": (0.2, 0.28),  # section 4.1; Clip-Higher, eq. 10
    "actor.dual_clip": None,  # none in the paper
    "actor.policy_loss_type": "ppo",  # eq. 8: a ratio for each token
    "actor.loss_agg_mode": "token-mean",  # eqs. 8 and 12
    "actor.adam.lr": 1e-6,  # section 4.1
    "actor.adam.weight_decay": 0.0,  # not stated
    "actor.max_norm": 1.0,  # not stated; the public recipe's
    "actor.lr_scheduler": "constant_with_warmup",  # section 4.1
    "actor.lr_warmup_steps": 20,  # section 4.1: rollout steps
    "algo.advantage.estimator": "group_norm",  # eq. 9
    "algo.kl.init_coef": 0.0,  # section 2.3: no KL term
    "algo.dynamic_filtering_enable": True,  # eq. 11
    "algo.max_filtered_batches": 30,  # not stated; the public recipe gives up after 10 rounds of 1,536 prompts: 3 batches each
    "rollout.batch_size": 512,  # section 4.1
    "rollout.n_samples_per_prompt": 16,  # section 4.1
    "rollout.max_new_tokens": 20480,  # section 4.1: 16,384 expected and 4,096 to soften the limit
    "rollout.temperature": 1.0,  # stated for evaluation; the public recipe's for training
    "rollout.top_p": 1.0,  # the public recipe's
    "train.batch_size": 512,  # section 4.1: 16 updates a rollout step
    "train.max_epochs": 1,  # follows from 16 updates
    "reward.overlong_filtering_enable": True,  # section 3.4; Table 1, second row
    "reward.overlong_buffer_len": 4096,  # section 4.1: L_cache; eq. 13
    "reward.overlong_penalty_factor": 1.0,  # eq. 13
    "data.max_len": 20480 + 2048,  # not stated; the public recipe takes prompts of up to 2,048 tokens
    "eval.n_samples_per_prompt": 32,  # section 4.1: avg@32
    "eval.temperature": 1.0,  # section 4.1
    "eval.top_p": 0.7,  # section 4.1
}
"""Settings of the main run of arXiv 2503.14476, by dotted name. Defaults that are the paper's are taken from here."""

PRESETS: Mapping[PresetName, Preset] = {
    "dapo": Preset(
        summary="DAPO's four techniques and overlong filtering with the paper's values. The soft overlong punishment "
        "waits for reward.overlong_buffer_len, because only the run knows its lengths.",
        settings={},  # the schema's defaults are DAPO's
    ),
    "dapo-paper": Preset(
        summary="Every number of the paper's main run (arXiv 2503.14476, section 4.1), lengths and batch sizes "
        "included. Differs in being asynchronous.",
        settings=PAPER,
    ),
    "dapo-recipe": Preset(
        summary="The public recipe of that run. Differs in being asynchronous, and in replacing each filtered prompt "
        "at once where the recipe generates another 1,536.",
        settings={
            **PAPER,
            "actor.lr_warmup_steps": 10,  # the paper says 20
            "actor.adam.weight_decay": 0.1,  # the paper is silent
            "actor.dual_clip": 10.0,  # a guard that the paper leaves out
            "reward.overlong_filtering_enable": False,  # its best run does without
        },
    ),
    "grpo": Preset(
        summary="GRPO (arXiv 2402.03300): group-normalised advantage, KL to a reference model in the loss, mean per "
        "response. Differs in batch and lengths, which are the run's, and in outcome rewards only.",
        settings={
            "algo.advantage.estimator": "group_norm",  # section 4.1.2
            "algo.kl.use_loss": True,  # eq. 3
            "algo.kl.estimator": "k3",  # eq. 4
            "algo.kl.init_coef": 0.04,  # section 4.2
            "algo.dynamic_filtering_enable": False,  # DAPO's
            "actor.eps_clip_low_high": (0.2, 0.2),  # symmetric; the paper gives no value: PPO's
            "actor.loss_agg_mode": "seq-mean-token-mean",  # eq. 3
            "actor.adam.lr": 1e-6,  # section 4.2
            "reward.overlong_filtering_enable": False,  # DAPO's
            "reward.overlong_buffer_len": None,  # DAPO's
        },
    ),
    "ppo": Preset(
        summary="PPO (arXiv 1707.06347): a critic, generalised advantage estimates, KL to a reference model in the "
        "reward (arXiv 1909.08593). Differs in lambda = 1 where the paper has 0.95, because the only score comes "
        "after the last of many tokens, and in one pass over the batch.",
        settings={
            "algo.advantage.estimator": "gae",  # eqs. 11 and 12
            "algo.advantage.gamma": 1.0,  # short answers are not preferred; OpenRLHF's
            "algo.advantage.lambd": 1.0,  # see the summary; OpenRLHF's
            "algo.kl.use_loss": False,  # arXiv 1909.08593, eq. 2: in the reward
            "algo.kl.estimator": "k1",  # the same
            "algo.kl.init_coef": 0.01,  # OpenRLHF's
            "algo.dynamic_filtering_enable": False,  # a critic learns from a prompt whose answers are all alike, too
            "actor.eps_clip_low_high": (0.2, 0.2),  # eq. 7 and section 6.1
            "actor.loss_agg_mode": "token-mean",  # eq. 7: the mean over time steps
            "critic.value_clip": 0.5,  # arXiv 2005.12729; OpenRLHF's
            "rollout.n_samples_per_prompt": 1,  # no group needed
            "reward.overlong_filtering_enable": False,  # DAPO's
            "reward.overlong_buffer_len": None,  # DAPO's
        },
    ),
}
