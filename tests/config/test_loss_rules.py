"""Which losses and corrections go together, and what a correction's name stands for."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_openrlhf.algorithm.choices import CORRECTIONS
from dapo_openrlhf.backend.run.actor_settings import openrlhf_settings
from dapo_openrlhf.config.cautions import cautions
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, parse_overrides
from dapo_openrlhf.config.settings import Config


def config(arguments: str) -> Config:
    settings: dict[str, Any] = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p.jsonl"}}
    for dotted, value in parse_overrides(arguments.split()).items():
        *sections, key = dotted.split(".")
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return build_config(settings, source="test")


GMPO = "--actor.policy_loss_type gmpo --actor.loss_agg_mode seq-mean-token-mean "


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--actor.policy_loss_type cispo --actor.dual_clip 10", ["actor.dual_clip: 10 has no meaning", "cispo", "null"]),
        ("--preset dapo-recipe --actor.policy_loss_type sapo", ["actor.dual_clip: 10 has no meaning", "sapo"]),
        ("--actor.policy_loss_type gmpo", ["actor.loss_agg_mode: token-mean", "gmpo", "use seq-mean-token-mean"]),
        (GMPO.replace("token-mean ", "token-sum-norm "), ["actor.loss_agg_mode: seq-mean-token-sum-norm", "gmpo"]),
        (GMPO + "--algo.advantage.estimator gae", ["algo.advantage.estimator: gae", "one for all", "group_norm"]),
        (GMPO + "--algo.advantage.estimator reinforce --algo.advantage.gamma 0.9", ["algo.advantage.gamma: 0.9"]),
        (GMPO + "--algo.kl.init_coef 0.1", ["algo.kl.use_loss: false", "use true"]),
        (GMPO + "--algo.advantage.is_correction icepop --algo.advantage.is_correction_gating tv "
         "--algo.advantage.is_correction_threshold 0.2", ["is_correction_gating: has no meaning", "gmpo"]),
        ("--algo.advantage.is_correction_gating tv --algo.advantage.is_correction_threshold 0.1",
         ["is_correction_gating: goes with", "mask, not with clip"]),
        ("--algo.advantage.is_correction mis --algo.advantage.is_correction_level off",
         ["is_correction_cap: has nothing to correct"]),
        ("--algo.advantage.is_correction icepop --algo.advantage.is_correction_gating binary_kl",
         ["is_correction_threshold: 0.5 5 has a lower bound", "use 5 alone"]),
        ("--algo.advantage.is_correction m2po --algo.advantage.is_correction_level seq",
         ["is_correction_level: seq does not go with", "second_moment"]),
        ("--algo.advantage.is_correction m2po --async.old_logprobs interpolate",
         ["async.old_logprobs: interpolate leaves", "use recompute"]),
        ("--algo.advantage.is_correction icepop2", ["algo.advantage.is_correction: 'icepop2' is not accepted", "'m2po'"]),
        ("--algo.kl.unbiased_gradient true", ["algo.kl.unbiased_gradient: true has no meaning without a KL in the loss"]),
        ("--reward.clip_range 1 -1", ["reward.clip_range: 1 -1 is not a range"]),
        ("--reward.stop_properly_penalty_coef 1.5", ["reward.stop_properly_penalty_coef: 1.5 is not accepted"]),
        ("--ds.ring_attn_size 2", ["ds.ring_attn_size: an option of OpenRLHF that is not here: a sequence lies on one rank"]),
        ("--device cpu --ds.attn_implementation sdpa --ds.use_liger_kernel true",
         ["ds.use_liger_kernel: true needs a GPU", "use false with device: cpu"]),
        ("--train.ema_beta 0.9", ["train.ema_beta: 0.9 has no meaning without an average", "set train.enable_ema true"]),
        ("--train.enable_ema true --train.ema_beta 1", ["train.ema_beta: 1 is not accepted"]),
        ("--actor.aux_loss_coef -0.1", ["actor.aux_loss_coef: -0.1 is not accepted"]),
        ("--ds.load_in_4bit", ["ds.load_in_4bit: an option", "weights are not quantised"]),
        ("--ds.lora.rank -1", ["ds.lora.rank: -1 is not accepted"]),
        ("--ds.lora.alpha 32", ["ds.lora.alpha: 32 has no meaning with ds.lora.rank 0"]),
        ("--ds.lora.rank 8 --ds.lora.dropout 0.05", ["ds.lora.dropout: 0.05 would train another policy", "use 0"]),
        ("--ds.lora.rank 8 --ds.lora.target_modules all-linear q_proj",
         ["ds.lora.target_modules: all-linear is every layer already"]),
        ("--ds.lora.rank 8 --algo.advantage.estimator gae", ["algo.advantage.estimator: gae trains a critic", "group_norm"]),
        ("--logger.wandb.key secret", ["logger.wandb.key: a key among the settings", "WANDB_API_KEY"]),
        ("--use_ms true", ["use_ms: an option of OpenRLHF that is not here"]),
        ("--actor.dppo_delta 0", ["actor.dppo_delta: 0 is not accepted"]),
        ("--actor.sapo_tau 1.0", ["actor.sapo_tau"]),
    ],
)  # fmt: skip
def test_refused_by_name(arguments: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 2, message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "arguments",
    [
        "--actor.policy_loss_type cispo",
        "--actor.policy_loss_type dppo_tv --actor.dppo_delta 0.2 --async.old_logprobs rollout",
        "--actor.policy_loss_type sapo --actor.sapo_tau 2 1 --algo.advantage.estimator gae",
        GMPO + "--algo.kl.init_coef 0.1 --algo.kl.use_loss --algo.kl.estimator k3",
        GMPO + "--algo.advantage.estimator reinforce_baseline",
        "--algo.advantage.is_correction mis --actor.policy_loss_type cispo",
        "--algo.advantage.is_correction m2po",
        "--algo.advantage.is_correction_level seq --algo.advantage.is_correction_mode mask "
        "--algo.advantage.is_correction_gating binary_kl --algo.advantage.is_correction_threshold 0.01",
        "--algo.kl.init_coef 0.1 --algo.kl.use_loss --algo.kl.unbiased_gradient",
        "--algo.advantage.estimator flash_reinforce --rollout.n_samples_per_prompt 1 "
        "--algo.dynamic_filtering_enable false",
        "--actor.entropy_coef 0.01 --reward.clip_range -10 10 --reward.stop_properly_penalty_coef -0.5",
        "--async.old_logprobs interpolate --async.max_staleness 4 --async.scale_lr",
    ],
)
def test_accepted(arguments: str) -> None:
    config(arguments)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_name_sets_what_the_run_does_not(name: Any) -> None:
    section = config(f"--algo.advantage.is_correction {name}").algo.advantage.model_dump()
    for key, value in CORRECTIONS[name].items():
        assert section[key] == value
    own = config(f"--algo.advantage.is_correction {name} --algo.advantage.is_correction_threshold 0 1.5")
    assert own.algo.advantage.is_correction_threshold == (0.0, 1.5)
    said = [text for text in cautions(own, prompts=10**6) if "is_correction_threshold" in text]
    assert len(said) == 1 and "0 1.5 in place of" in said[0]


def test_off_may_be_typed_as_the_documentation_has_it() -> None:
    """YAML reads the word as false."""
    assert config("--algo.advantage.is_correction_level off").algo.advantage.is_correction_level == "off"


def test_no_name_is_truncated_importance_sampling() -> None:
    plain, named = config("").algo.advantage, config("--algo.advantage.is_correction tis").algo.advantage
    assert plain.model_dump(exclude={"is_correction"}) == named.model_dump(exclude={"is_correction"})


@pytest.mark.parametrize(
    "malformed", [{"algo": 3}, {"algo": {"advantage": [1]}}, {"algo": {"advantage": {"is_correction": []}}}]
)
def test_what_is_no_section_is_refused_with_everything_else(malformed: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p.jsonl"}}
    with pytest.raises(ConfigError, match="is not accepted"):
        build_config({**settings, **malformed}, source="test")


def test_the_learning_rate_falls_with_staleness_only_if_asked() -> None:
    plain = openrlhf_settings(config("--async.max_staleness 3 --actor.adam.lr 4e-6"))
    scaled = openrlhf_settings(config("--async.max_staleness 3 --actor.adam.lr 4e-6 --async.scale_lr"))
    synchronous = openrlhf_settings(config("--async.max_staleness 0 --actor.adam.lr 4e-6 --async.scale_lr"))
    assert plain["actor.adam.lr"] == synchronous["actor.adam.lr"] == 4e-6
    assert scaled["actor.adam.lr"] == pytest.approx(1e-6)
    assert scaled["critic.adam.lr"] == pytest.approx(plain["critic.adam.lr"] / 4)
