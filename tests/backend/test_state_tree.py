"""A saved state is what was saved, to the bit, and consists of safetensors and JSON only."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dapo_openrlhf.backend.trainer.state_tree import (
    HostCopies,
    StateUnreadable,
    read_tree,
    tensors_of,
    write_tree,
)


class Stage(int, enum.Enum):
    """An integer of another type, as DeepSpeed has some."""

    TWO = 2


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and all(map(same, left, right)) and len(left) == len(right)
    return type(left) is type(right) and left == right


def a_state() -> dict[str, Any]:
    """Adam's state after a step of a small layer, and some rarer things."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3 / 3, betas=(0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "bf16": [torch.full((3,), 1 / 3, dtype=torch.bfloat16), torch.arange(6).view(2, 3).T],
        "empty": {"tensor": torch.empty(0), "dict": {}, "list": [], "tuple": ()},
        "keys": {1: "one", "1": "text", "": None, "a/b": True},
        "numbers": [0.1, math.inf, -0.0, 2**70, False],
        "scalar": torch.tensor(5.0),
    }


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = a_state()
    write_tree(HostCopies().copy(state, "state"), tmp_path / "deep" / "rank-0")
    assert same(read_tree(tmp_path / "deep" / "rank-0"), state)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["rank-0.json", "rank-0.safetensors"]


def test_a_copy_stays_as_it_was() -> None:
    whole = torch.arange(6.0)
    state = {"part": whole[2:4], "again": [whole]}
    held = HostCopies()
    copies = held.copy(state, "state")
    whole.zero_()
    assert [tensor.tolist() for _, tensor in tensors_of(copies)] == [[2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]
    assert [name for name, _ in tensors_of(copies)] == ["part", "again/0"]


def test_copies_go_into_the_same_memory_unless_shape_or_type_differ() -> None:
    held = HostCopies()
    first = held.copy({0: torch.ones(3), "0": torch.zeros(3), "n": 1}, "state")
    other = held.copy({0: torch.ones(3)}, "another")
    again = held.copy({0: torch.full((3,), 2.0), "0": torch.zeros(3), "n": 2}, "state")
    assert again[0] is first[0] and first[0].tolist() == [2.0] * 3, "valid until the next call"
    assert other[0].tolist() == [1.0] * 3 and first["0"].tolist() == [0.0] * 3
    assert (first["n"], again["n"]) == (1, 2)
    assert held.copy({0: torch.ones(4)}, "state")[0].tolist() == [1.0] * 4
    assert held.copy({0: torch.ones(4, dtype=torch.int32)}, "state")[0].dtype == torch.int32


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Stage.TWO, "Stage"),
        (np.float64(1.0), "float64"),
        (np.zeros(2), "ndarray"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (torch.float32, "dtype"),
        (object(), "object"),
    ],
)
def test_what_only_a_pickle_could_hold_is_refused_by_name(tmp_path: Path, value: object, name: str) -> None:
    with pytest.raises(TypeError, match=f"group/1/value is of type {name}, which cannot be saved without a pickle"):
        write_tree({"group": [0, {"value": value}]}, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state has the key 1\.5, which is neither a string nor an integer"):
        write_tree({"state": {1.5: 0}}, tmp_path / "state")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="two tensors are called 1"):
        write_tree({1: torch.ones(1), "1": torch.zeros(1)}, tmp_path / "state")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "truncated": truncate,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, what: str) -> None:
    write_tree(a_state(), tmp_path / "rank-0")
    DAMAGES[what](tmp_path / f"rank-0{suffix}")
    with pytest.raises(StateUnreadable, match=f"rank-0{suffix} cannot be read: "):
        read_tree(tmp_path / "rank-0")


@pytest.mark.parametrize(
    "content",
    [
        {"tensor": "nowhere"},
        {"object": []},
        {"dict": 3},
        {"dict": [["a"]]},
        {"tuple": None},
        {},
        {"dict": [], "tuple": []},
        {"dict": [[{"dict": []}, 1]]},
    ],
)
def test_json_that_describes_no_state_is_named(tmp_path: Path, content: object) -> None:
    write_tree(a_state(), tmp_path / "rank-0")
    (tmp_path / "rank-0.json").write_text(json.dumps(content))
    with pytest.raises(StateUnreadable, match=r"rank-0.json cannot be read: "):
        read_tree(tmp_path / "rank-0")
