"""A model's files, read in a process of their own: what comes back, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import CHARACTERS, make_tiny_tokenizer

from dapo_openrlhf.backend.run.model_files import read_model_files
from dapo_openrlhf.backend.run.stop_tokens import stop_tokens
from dapo_openrlhf.config.errors import ConfigError

pytestmark = pytest.mark.long

VALUES = {"model_type": "qwen2", "vocab_size": len(CHARACTERS), "eos_token_id": 1, "max_position_embeddings": 128}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model"
    make_tiny_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(VALUES))
    return folder


def own_tokenizer(model: Path, code: str) -> None:
    """Give the model a tokenizer with code of its own."""
    (model / "own.py").write_text(code)
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": [None, "own.Own"]}}))


def test_they_say_what_the_function_in_this_process_says(model: Path) -> None:
    read = read_model_files(str(model), chat=False)
    assert VALUES.items() <= read.config.items()
    assert read.stop == stop_tokens(str(model), chat=False)


def test_the_process_that_asks_imports_neither_transformers_nor_torch(model: Path) -> None:
    program = (
        "import sys; from dapo_openrlhf.backend.run.inputs import read_model_files; "
        f"read_model_files({str(model)!r}, chat=False); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_tokenizer_whose_code_needs_torch_gets_it(model: Path) -> None:
    own_tokenizer(
        model,
        "import torch\nfrom transformers import PreTrainedTokenizerFast\n\n\n"
        "class Own(PreTrainedTokenizerFast):\n    rows = torch.zeros(3)\n",
    )
    assert read_model_files(str(model), chat=False, trust_remote_code=True).stop.ids == (1,)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", "{", "actor.model_name_or_path: the configuration of .* cannot be read"),
        ("tokenizer.json", "{", "actor.model_name_or_path: the tokenizer of .* cannot be read"),
        ("generation_config.json", "{", "generation_config.json: not valid JSON"),
        ("generation_config.json", "[]", "generation_config.json: holds no JSON object"),
        ("config.json", "[1]", "actor.model_name_or_path: the configuration of .* cannot be read"),
        ("config.json", "null", "actor.model_name_or_path: the configuration of .* cannot be read"),
        ("config.json", "\0" * 300, "actor.model_name_or_path: the configuration of .* cannot be read"),
        (
            "generation_config.json",
            '{"max_new_tokens": 0}',
            "generation_config.json: transformers refuses it: .*max_new_tok",
        ),
    ],
)
def test_a_broken_file_is_refused(model: Path, file: str, text: str, words: str) -> None:
    (model / file).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_model_files(str(model), chat=False)


def test_a_tokenizer_that_ends_its_process_is_refused_with_its_last_words(model: Path) -> None:
    own_tokenizer(model, "import os, sys\nsys.stderr.write('no licence')\nsys.stderr.flush()\nos._exit(3)\n")
    with pytest.raises(ConfigError, match=r"ended with status 3: .*no licence"):
        read_model_files(str(model), chat=False, trust_remote_code=True)


def test_a_name_that_the_hub_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ConfigError, match=r"actor.model_name_or_path: the configuration of nobody/nothing cannot be read"
    ):
        read_model_files("nobody/nothing", chat=False)
