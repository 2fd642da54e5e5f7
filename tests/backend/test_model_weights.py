"""Weights that are not all there, or not whole, are named before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dapo_openrlhf.backend.run.model_weights import weights_trouble

NAMES = ("1-of-2.safetensors", "2-of-2.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with weights in two files."""
    for name in NAMES:
        save_file({name: np.ones(100, np.float32)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    write_index(tmp_path, {"weight_map": {name: name for name in NAMES}})
    return tmp_path


def write_index(folder: Path, values: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(values))


def trouble(folder: Path) -> str:
    return weights_trouble(str(folder)).removeprefix(f"{folder}: ")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "1 of 2 files of weights are missing, 2-of-2.safetensors first"),
    "a link to itself": (loop, "1 of 2 files of weights are missing, 2-of-2.safetensors first"),
    "empty": (lambda path: path.write_bytes(b""), "2-of-2.safetensors is empty"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "2-of-2.safetensors is damaged, or was not"),
    "zeroed": (lambda path: path.write_bytes(bytes(500)), "2-of-2.safetensors is damaged, or was not"),
    "a page of an error": (lambda path: path.write_text("<html>404</html>"), "2-of-2.safetensors is damaged"),
    "a pointer of git-lfs": (lambda path: path.write_text("version https://git-lfs"), "2-of-2.safetensors is damaged"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_file_that_is_not_whole_is_named(model: Path, what: str) -> None:
    damage, words = DAMAGES[what]
    assert trouble(model) == ""
    damage(model / NAMES[1])
    assert trouble(model).startswith(words)


@pytest.mark.parametrize(
    "values", [None, [], {}, "", {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": {}},
               {"weight_map": {"a": None}}, {"weight_map": {"a": {}}}, {"weight_map": {"a": 1, "b": "c"}}],
)  # fmt: skip
def test_an_index_may_hold_anything(model: Path, values: object) -> None:
    write_index(model, values)
    assert trouble(model).startswith("model.safetensors.index.json cannot be read (")


def test_an_index_of_zeros_is_named(model: Path) -> None:
    (model / "model.safetensors.index.json").write_bytes(bytes(300))
    assert trouble(model).startswith("model.safetensors.index.json cannot be read (")


def test_one_file_is_enough_and_none_is_too_few(tmp_path: Path) -> None:
    assert trouble(tmp_path).startswith("it has no weights (model.safetensors or pytorch_model.bin")
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert trouble(tmp_path) == ""


def test_a_name_on_the_hub_is_left_to_its_download() -> None:
    assert weights_trouble("Qwen/Qwen2.5-0.5B") == ""
