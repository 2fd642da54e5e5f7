"""Presets lie below a run's own settings, and each is the algorithm it is named after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, dump_config, load_config, preset_changes
from dapo_openrlhf.config.presets import PAPER, PRESETS, PresetName
from dapo_openrlhf.config.settings import Config, setting_names

LEAST = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "d"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The least that a configuration must say."""
    path = tmp_path / "run.yaml"
    path.write_text("actor: {model_name_or_path: m}\ndata: {prompt_dataset: d}\n")
    return path


def value_of(config: Config, dotted: str) -> Any:
    for part in dotted.split("."):
        config = getattr(config, {"async": "async_"}.get(part, part))
    return config


def test_every_preset_that_may_be_named_exists() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_says_and_nothing_else(name: str, file: Path) -> None:
    config, plain = load_config(file, {"preset": name}), load_config(file)
    settings = PRESETS[name].settings  # type: ignore[index]
    for dotted in setting_names():
        expected = settings.get(dotted, name if dotted == "preset" else value_of(plain, dotted))
        actual = value_of(config, dotted)
        assert (list(actual) if isinstance(actual, tuple) else actual) == (
            list(expected) if isinstance(expected, tuple) else expected
        ), dotted
    assert set(settings) <= set(setting_names())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_a_round_trip(name: str, file: Path, tmp_path: Path) -> None:
    config = load_config(file, {"preset": name, "actor.adam.lr": 3e-7})
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


def test_dapo_is_the_default(file: Path) -> None:
    assert load_config(file) == load_config(file, {"preset": "dapo"})


def test_the_file_overrides_its_preset_and_the_command_line_both(file: Path) -> None:
    file.write_text("preset: grpo\nalgo: {kl: {init_coef: 0.1}}\nactor.adam.lr: 2.0e-6\n" + file.read_text())
    config = load_config(file, {"actor.eps_clip_low_high": [0.1, 0.1]})
    assert config.algo.kl.init_coef == 0.1
    assert config.actor.adam.lr == 2e-6
    assert config.actor.eps_clip_low_high == (0.1, 0.1)
    assert config.algo.kl.use_loss and config.algo.kl.estimator == "k3"  # their neighbours stay the preset's


def test_an_empty_section_of_the_file_changes_nothing(file: Path) -> None:
    file.write_text("preset: grpo\nalgo:\nreward:\n" + file.read_text())
    assert load_config(file).algo.kl.init_coef == 0.04


def test_the_command_lines_preset_replaces_the_files(file: Path) -> None:
    file.write_text("preset: grpo\n" + file.read_text())
    config = load_config(file, {"preset": "ppo"})
    assert config.algo.advantage.estimator == "gae"
    assert not config.algo.kl.use_loss


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_as_it_is_has_no_changes(name: str, file: Path) -> None:
    assert list(preset_changes(load_config(file, {"preset": name}))) == []


def test_what_a_run_changes_of_its_preset_is_told(file: Path) -> None:
    config = load_config(file, {"preset": "grpo", "algo.kl.init_coef": 0.1, "actor.eps_clip_low_high": [0.2, 0.3]})
    assert sorted(preset_changes(config)) == [
        ("actor.eps_clip_low_high", [0.2, 0.3], [0.2, 0.2]),
        ("algo.kl.init_coef", 0.1, 0.04),
    ]


def test_presets_hold_for_settings_given_as_a_mapping_and_leave_it_alone() -> None:
    settings = LEAST | {"preset": "ppo"}
    assert build_config(settings, source="test").rollout.n_samples_per_prompt == 1
    assert settings == LEAST | {"preset": "ppo"}


def test_a_setting_in_place_of_a_section_is_still_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="rollout: 3 is not accepted"):
        load_config(file, {"preset": "ppo", "rollout": 3})


def test_ppo_trains_a_critic_on_single_responses(file: Path) -> None:
    config = load_config(file, {"preset": "ppo"})
    assert config.algo.advantage.estimator == "gae"
    assert config.rollout.n_samples_per_prompt == 1
    assert not config.algo.dynamic_filtering_enable
    assert config.actor.eps_clip_low_high == (0.2, 0.2)
    assert config.algo.kl.init_coef > 0 and not config.algo.kl.use_loss


def test_grpo_has_none_of_daposs_techniques(file: Path) -> None:
    config = load_config(file, {"preset": "grpo"})
    assert config.algo.advantage.estimator == "group_norm"
    assert config.algo.kl.use_loss and config.algo.kl.init_coef == 0.04 and config.algo.kl.estimator == "k3"
    assert config.actor.eps_clip_low_high[0] == config.actor.eps_clip_low_high[1]
    assert config.actor.loss_agg_mode == "seq-mean-token-mean"
    assert not config.algo.dynamic_filtering_enable
    assert not config.reward.overlong_filtering_enable
    assert not config.reward.overlong_buffer_len


def test_recipe_and_paper_differ_where_the_recipe_says(file: Path) -> None:
    paper, recipe = PRESETS["dapo-paper"].settings, PRESETS["dapo-recipe"].settings
    assert {key for key in recipe if recipe[key] != paper.get(key)} == {
        "actor.lr_warmup_steps",
        "actor.adam.weight_decay",
        "actor.dual_clip",
        "reward.overlong_filtering_enable",
    }


def test_the_schemas_defaults_are_the_papers_wherever_both_state_a_number(file: Path) -> None:
    """What the run alone can know, or what costs without saying so, is otherwise by default."""
    config = load_config(file)
    otherwise = {dotted for dotted, value in PAPER.items() if value_of(config, dotted) != value}
    assert otherwise == {
        "reward.overlong_buffer_len",
        "eval.n_samples_per_prompt",
        "eval.top_p",
        "algo.max_filtered_batches",
    }


def test_paper_and_recipe_give_up_after_the_recipes_ten_rounds_of_three_batches(file: Path) -> None:
    for name in ("dapo-paper", "dapo-recipe"):
        config = load_config(file, {"preset": name})
        assert config.algo.max_filtered_batches * config.rollout.batch_size == 10 * 1536


SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def keys_of(settings: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted names in nested settings."""
    keys = set()
    for key, value in settings.items():
        keys |= keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return keys


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_run_repeats_no_number_of_its_preset(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    assert keys_of(written) & set(PRESETS[written.get("preset", "dapo")].settings) == set()


def test_the_shipped_paper_run_is_the_papers_preset() -> None:
    shipped = load_config(Path(__file__).parents[2] / "configs" / "dapo_paper_qwen2.5_32b.yaml")
    assert shipped.preset == "dapo-paper"
    for dotted, expected in PAPER.items():
        assert value_of(shipped, dotted) == expected, dotted


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_it_is(name: PresetName) -> None:
    assert len(PRESETS[name].summary) > 40
    assert name == "dapo" or "iffers" in PRESETS[name].summary
