"""Python that comes with a model runs only where the user has asked for it, whatever command takes the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_model import CHARACTERS, make_looks, make_tiny_tokenizer

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run.actor_settings import engine_args
from dapo_openrlhf.backend.run.inputs import check_inputs, check_models
from dapo_openrlhf.backend.run.train_settings import beginning
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, load_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.dataset.own_code import own_code

pytestmark = pytest.mark.long

VALUES = {"model_type": "qwen2", "vocab_size": len(CHARACTERS), "eos_token_id": 1, "max_position_embeddings": 128}
TRUST = "--actor.trust_remote_code"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, prompts and a configuration, and what else Python of models leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # where transformers puts that folder, if it is loaded here first
    make_model(tmp_path / "model")
    rows = [{"input": f"{n}+{n}=", "label": str(2 * n)} for n in range(4)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text(json.dumps(SETTINGS))
    return tmp_path


SETTINGS = {
    "device": "cpu",
    "actor": {"model_name_or_path": "model"},
    "ds": {"attn_implementation": "sdpa", "param_dtype": "fp32"},
    "rollout": {"max_new_tokens": 8},
    "data": {"prompt_dataset": "prompts.jsonl", "max_len": 16},
    "eval": {"dataset": "prompts.jsonl"},
    "reward": {"overlong_buffer_len": 0},
}


def make_model(folder: Path) -> None:
    make_tiny_tokenizer(folder)
    make_looks(folder, VALUES)


def plant(folder: Path, file: str, what: str) -> None:
    """Give a model Python that leaves a file ``ran`` in the current folder's parent of models when it is loaded."""
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast, Qwen2Config\n"
        f"open({str(folder.parent / 'ran')!r}, 'a').close()\n\n\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n\n\nclass OwnConfig(Qwen2Config):\n    model_type = 'own'\n"
    )
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    named = {"AutoConfig": "own.OwnConfig"} if what == "AutoConfig" else {what: ["own.Own", None]}
    path.write_text(json.dumps({**values, "auto_map": named}))


PLANTED = [("tokenizer_config.json", "AutoTokenizer"), ("config.json", "AutoConfig"), ("config.json", "AutoTokenizer")]


@pytest.mark.parametrize(("file", "what"), PLANTED)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_run_refuses_it_and_names_file_and_setting(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, file: str, what: str
) -> None:
    plant(place / "model", file, what)
    assert main([command, "--config", "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert "actor.model_name_or_path: " in said and f"model/{file} names Python" in said
    assert "allow it with actor.trust_remote_code true" in said
    assert not (place / "ran").exists() and not (place / "runs").exists()


@pytest.mark.parametrize(("file", "what"), PLANTED[:2])
def test_a_run_that_trusts_it_says_so_and_runs_it(place: Path, file: str, what: str) -> None:
    plant(place / "model", file, what)
    said: list[str] = []
    inputs = check_inputs(
        load_config(Path("run.yaml"), {"actor.trust_remote_code": True}), training=True, say=said.append
    )
    assert [prompt.label for prompt in inputs.prompts] == ["0", "2", "4", "6"]
    (header,) = [line for line in said if line.startswith("actor.trust_remote_code true: ")]
    assert f"model/{file}" in header
    assert (place / "ran").exists()


def test_nothing_is_said_of_a_model_without_code(place: Path) -> None:
    said: list[str] = []
    check_inputs(load_config(Path("run.yaml")), training=True, say=said.append)
    assert not any("trust_remote_code" in line for line in said)


@pytest.mark.parametrize("setting", ["critic.model_name_or_path", "--resume"])
def test_the_critic_and_the_checkpoint_to_resume_from_are_looked_at_too(place: Path, setting: str) -> None:
    make_model(place / "other")
    plant(place / "other", "config.json", "AutoConfig")
    critic = {"preset": "ppo", "critic": {"model_name_or_path": "other"}}
    config = build_config(SETTINGS | (critic if setting.startswith("critic") else {}), source="test")
    checkpoint = place / "other" if setting == "--resume" else None
    with pytest.raises(ConfigError, match=f"{setting}: .*other/config.json names Python"):
        check_models(config, checkpoint, print, training=True)


@pytest.mark.parametrize("option", ["--tokenizer", "--chat-template"])
def test_prepare_refuses_it_and_names_file_and_option(
    place: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    plant(place / "model", "tokenizer_config.json", "AutoTokenizer")
    (place / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    arguments = ["prepare", "prompts.jsonl", "--output", "out.jsonl", option, "model", "--max-tokens", "9999"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"{option}: model/tokenizer_config.json names Python" in said
    assert "allow it with --trust-remote-code" in said
    assert not (place / "ran").exists() and not (place / "out.jsonl").exists()
    assert main([*arguments, "--trust-remote-code"]) == 0
    assert (place / "ran").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_engines_and_ranks_are_told_what_the_setting_says(place: Path, trusted: bool) -> None:
    config: Config = load_config(Path("run.yaml"), {"actor.trust_remote_code": trusted})
    inputs = check_inputs(config, training=True)
    assert engine_args(config, inputs.device, 0)["trust_remote_code"] is trusted
    assert beginning(config, inputs).trust_remote_code is trusted


@pytest.mark.parametrize("text", ["", "[]", "3", '{"auto_map": {}}', '{"auto_map": null}', "[" * 100_000])
def test_files_that_name_no_code(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert [*own_code(str(tmp_path))] == []


@pytest.mark.parametrize("named", ["own.Own", ["own.Own"], [["own.Own", None]], {"AutoX": {"deep": ["own.Own"]}}])
def test_every_form_of_naming_counts(tmp_path: Path, named: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": named}))
    assert [*own_code(str(tmp_path))] == [(tmp_path / "tokenizer_config.json", "own.Own")]


def test_a_chat_template_runs_in_a_sandbox(place: Path) -> None:
    (place / "model" / "chat_template.jinja").write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch ran') }}"
    )
    config = load_config(Path("run.yaml"), {"data.apply_chat_template": True, "data.on_bad_row": "skip"})
    with pytest.raises(ConfigError, match="the chat template refuses"):
        check_inputs(config, training=True)
    assert not (place / "ran").exists()
