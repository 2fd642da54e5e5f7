"""What the configuration becomes for a trainer rank, and for OpenRLHF inside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.actor_settings import engine_args
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.needs import check_vllm
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.backend.run.workers import start_rank
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, LossSettings
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config

INPUTS = Inputs(device=Device(kind="cpu", threads=1), prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=()))


class FakeRank:
    """Takes one ``start.remote(...)``."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.start = self

    def remote(self, **given: Any) -> None:
        assert not self.given, "started twice"
        self.given = given


def config(preset: str = "dapo", **changes: Any) -> Config:
    """Dotted names with ``__`` for the first dot."""
    settings: dict[str, Any] = {
        "preset": preset,
        "actor": {"model_name_or_path": "hub/model"},
        "data": {"prompt_dataset": "d"},
        "algo": {},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        settings.setdefault(section, {})[key] = value
    return build_config(settings, source="test")


def handed(config: Config, inputs: Inputs = INPUTS) -> dict[str, Any]:
    rank = FakeRank()
    start_rank(rank, config, inputs)
    return rank.given


def settings_of(config: Config) -> tuple[LossSettings, AdvantageSettings]:
    given = handed(config)
    return given["settings"].loss, given["settings"].advantages


def test_dapo_needs_neither_reference_nor_critic() -> None:
    loss, advantages = settings_of(config())
    assert loss.kl_coef == advantages.kl_coef == 0.0
    assert not advantages.critic
    assert not advantages.by_token


def test_a_reference_is_loaded_where_there_is_a_kl_and_stays_the_first_model_after_a_resume(tmp_path: Path) -> None:
    assert handed(config())["beginning"].reference is None
    assert handed(config("grpo", algo__kl={"init_coef": 0.0}))["beginning"].reference is None
    resumed = replace(INPUTS, checkpoint=tmp_path)
    for preset in ("grpo", "ppo"):
        given = handed(config(preset), resumed)
        assert given["beginning"].reference == "hub/model"
        assert given["openrlhf_settings"]["actor.model_name_or_path"] == str(tmp_path)
        assert (
            given["openrlhf_settings"]["critic.model_name_or_path"] == "hub/model"
        )  # its state lies in the checkpoint


def test_grpo_has_its_kl_in_the_loss_only() -> None:
    loss, advantages = settings_of(config("grpo"))
    assert (loss.kl_coef, loss.kl_estimator) == (0.04, "k3")
    assert advantages.kl_coef == 0.0
    assert not advantages.by_token


def test_ppo_has_its_kl_in_the_reward_only() -> None:
    loss, advantages = settings_of(config("ppo"))
    assert loss.kl_coef == 0.0
    assert (advantages.kl_coef, advantages.kl_estimator) == (0.01, "k1")
    assert advantages.critic and advantages.whitened and advantages.by_token


@pytest.mark.parametrize(
    ("estimator", "whitened"), [("rloo", False), ("dr_grpo", False), ("reinforce", True), ("reinforce_baseline", True)]
)
def test_estimators_without_a_critic(estimator: str, whitened: bool) -> None:
    _, advantages = settings_of(config(algo__advantage={"estimator": estimator}))
    assert not advantages.critic
    assert advantages.whitened is whitened


def test_the_critic_starts_from_the_actors_model_unless_told_otherwise() -> None:
    assert handed(config("ppo"))["openrlhf_settings"]["critic.model_name_or_path"] == "hub/model"
    other = config("ppo", critic__model_name_or_path="hub/critic")
    assert handed(other)["openrlhf_settings"]["critic.model_name_or_path"] == "hub/critic"


@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "linear", "cosine"])
def test_generation_rounds_do_not_change_what_openrlhf_makes_its_schedule_of(scheduler: str) -> None:
    """Whatever dynamic sampling may drop and generate anew; 400 steps of 16 updates, 20 of them warm-up."""
    for enabled, rounds in ((True, 1), (True, 1000), (False, 20)):
        given = handed(
            config(
                actor__lr_scheduler=scheduler,
                algo__dynamic_filtering_enable=enabled,
                algo__max_filtered_batches=rounds,
            )
        )
        assert given["beginning"].total_updates == 6400
        assert given["openrlhf_settings"]["actor.lr_scheduler"] == scheduler
        assert given["openrlhf_settings"]["actor.lr_warmup_ratio"] == (320 - 0.5) / 6400


def test_an_engine_started_after_its_runs_checkpoint_was_removed_begins_with_the_model_of_the_configuration(
    tmp_path: Path,
) -> None:
    """Of the checkpoints only the newest are kept; a publication brings the weights then."""
    checkpoint = tmp_path / "step-000010"
    checkpoint.mkdir()
    assert engine_args(config(), INPUTS.device, 0, checkpoint)["model"] == str(checkpoint)
    checkpoint.rmdir()
    assert engine_args(config(), INPUTS.device, 0, checkpoint)["model"] == "hub/model"


def test_only_training_asks_an_engine_for_what_its_sampler_kept() -> None:
    cut = config(rollout__top_p=0.9)
    assert engine_args(cut, INPUTS.device, 0)["return_sampling_mask"] is True
    assert "return_sampling_mask" not in engine_args(cut, INPUTS.device, 0, training=False)
    check_vllm(cut, "0.26.0", training=False)
    with pytest.raises(ConfigError, match=r"rollout\.top_p 0\.9"):
        check_vllm(cut, "0.26.0", training=True)
