"""The comparison of losses under staleness: every arm is a configuration of its own, and the table counts what failed."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from scripts.experiments.losses import arms as arms_module
from scripts.experiments.losses.__main__ import plan
from scripts.experiments.losses.arms import ARMS, choose_arms, table_text

CONFIG = Path(__file__).parents[2] / "configs" / "ablation_cpu.yaml"


def options(folder: Path, **others: object) -> argparse.Namespace:
    return argparse.Namespace(**{"config": CONFIG, "output": folder, "ages": [1, 4, 8], "seeds": [1, 2], **others})


def test_every_arm_is_a_configuration_of_its_own(tmp_path: Path) -> None:
    trials = plan(options(tmp_path), ARMS, [])
    assert len(trials) == len(ARMS) * 3 * 2
    first = [trial.config() for trial in trials if trial.seed == 1]
    told = {str(config.model_dump(exclude={"run"})) for config in first}
    assert len(told) == len(ARMS) * 3
    assert {config.async_.max_staleness for config in first} == {1, 4, 8}
    assert len({trial.run.path for trial in trials}) == len(trials)


def test_settings_for_all_and_names_that_are_none(tmp_path: Path) -> None:
    (arm,) = choose_arms(["cispo"])
    (trial,) = plan(options(tmp_path, ages=[4], seeds=[7]), (arm,), ["--train.max_steps", "2"])
    config = trial.config()
    assert (config.train.max_steps, config.actor.policy_loss_type, config.train.seed) == (2, "cispo", 7)
    with pytest.raises(ConfigError, match="--arms ppo: there is no such arm; there are uncorrected, tis"):
        choose_arms(["ppo"])


def test_the_table_counts_what_did_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = choose_arms(["tis", "cispo"])
    trials = plan(options(tmp_path, ages=[1]), arms, [])
    for trial in trials[:3]:  # both of seed 1, and the first of seed 2
        trial.run.path.mkdir(parents=True)
        trial.run.summary.write_text("{}")
    finals = {1: 0.5, 2: 0.7}
    monkeypatch.setattr(arms_module, "read_trial", lambda run, seed: argparse.Namespace(final=finals[seed]))
    table = table_text(trials, arms, [1])
    assert "| tis | 60.0 ± 14.1 |" in table
    assert "| cispo | 50.0 (1 of 2) |" in table
