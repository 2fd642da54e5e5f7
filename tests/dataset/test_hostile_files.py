"""Pickles under the names of data, of a run's files and of the cache: none is unpickled, and each is refused or ignored."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from tiny_model import CHARACTERS, make_tiny_tokenizer

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.reading import read_prompt_set
from dapo_openrlhf.dataset.rules import RowRules

pytestmark = pytest.mark.long


class Hostile:
    """Makes a folder ``ran`` in the current folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


PICKLE = pickle.dumps(Hostile())
TEXT_PICKLE = pickle.dumps(Hostile(), protocol=0)
YAML = b"!!python/object/apply:os.mkdir [ran]\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def ran() -> bool:
    return Path("ran").exists()


def test_they_would_run() -> None:
    pickle.loads(TEXT_PICKLE)
    assert ran()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("m") / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": len(CHARACTERS)}))
    return folder


def rules(model: Path) -> RowRules:
    return RowRules(
        model=str(model),
        input_key="input",
        label_key="label",
        needs_answer=False,
        max_tokens=99,
        why_max="of this test",
    )


@pytest.mark.parametrize("content", [PICKLE, TEXT_PICKLE, YAML], ids=["binary", "text", "yaml"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet", "p.pkl", "p.pt", "p.arrow", "p.npy"])
def test_a_data_file_is_refused(model: Path, name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        read_prompt_set(
            Path(name), rules(model), setting="data.prompt_dataset", on_bad_row="refuse", say=lambda text: None
        )
    assert not ran()


@pytest.mark.parametrize("content", [PICKLE, TEXT_PICKLE])
def test_a_cached_set_is_made_anew(model: Path, content: bytes) -> None:
    Path("p.jsonl").write_text('{"input": "1+1=", "label": "2"}\n')

    def read() -> list[str]:
        prompts = read_prompt_set(
            Path("p.jsonl"), rules(model), setting="data.prompt_dataset", on_bad_row="refuse", say=lambda text: None
        )
        return [prompt.text for prompt in prompts]

    assert read() == ["1+1="]
    (kept,) = [path for path in Path("cache").rglob("*") if path.is_file()]
    kept.write_bytes(content)
    assert read() == ["1+1="]
    assert not ran()


@pytest.mark.parametrize("content", [PICKLE, TEXT_PICKLE, YAML], ids=["binary", "text", "yaml"])
@pytest.mark.parametrize(
    "command",
    [["train", "--config", "x"], ["train", "--resume", "run"], ["trace", "run"], ["checkpoint", "run"], ["verify", "x"], ["compare", "x", "x"], ["prepare", "x", "--output", "out.jsonl"]],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_no_command_unpickles_what_it_is_given(command: list[str], content: bytes) -> None:
    names = [*(f"run/{name}" for name in ("config.yaml", "events.jsonl", "metrics.jsonl", "summary.json")), "x"]
    names += [f"run/checkpoints/step-3/{name}" for name in ("state.json", "config.yaml", "manifest.json", "x.pt")]
    names += ["run/tensorboard/events.out.tfevents.1", "run/responses/0.jsonl"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    try:
        status = main(command)
    except ValueError:  # an unreadable event log
        status = 1
    assert status != 0
    assert not ran()
