"""An optimizer's state as a tree, written as JSON with its tensors in safetensors beside it (torch; no pickle).

A tree consists of dicts, lists, tuples, numbers, booleans, strings, None and tensors; keys are strings or integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Tree = Any
"""A tensor, a plain value, or a dict, list or tuple of trees."""

PLAIN = (type(None), bool, int, float, str)
"""Types of the values that JSON holds as they are."""


class StateUnreadable(RuntimeError):
    """A file of a saved state is missing or holds something else; the message names it."""


class HostCopies:
    """Copies trees to host memory, into the same memory each time.

    Memory that the system has just handed out takes several times as long to write to as memory in use.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def copy(self, tree: Tree, name: str) -> Tree:
        """The same tree with copies of its tensors, valid until the next call with this ``name``."""
        match tree:
            case Tensor():
                held = self._held.get(name)
                if held is None or held.shape != tree.shape or held.dtype != tree.dtype:
                    held = self._held[name] = torch.empty(tree.shape, dtype=tree.dtype, device="cpu")
                return held.copy_(tree.detach())
            case dict():
                return {key: self.copy(value, _below(name, repr(key))) for key, value in tree.items()}
            case list() | tuple():
                return type(tree)(self.copy(value, _below(name, index)) for index, value in enumerate(tree))
        return tree


def tensors_of(tree: Tree, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a tree; a name is the way to the tensor, such as ``optimizer/state/0/exp_avg``."""
    match tree:
        case Tensor():
            yield name, tree
        case dict():
            for key, value in tree.items():
                yield from tensors_of(value, _below(name, key))
        case list() | tuple():
            for index, value in enumerate(tree):
                yield from tensors_of(value, _below(name, index))


def write_tree(tree: Tree, path: Path) -> None:
    """Write a tree of tensors in host memory to ``path`` with the suffixes ``.json`` and ``.safetensors``.

    Raises ``TypeError`` for a value of another type, and names its place.
    """
    encoded, tensors = _encoded(tree, ""), dict[str, Tensor]()
    for name, tensor in tensors_of(tree):
        if name in tensors:
            raise TypeError(f"two tensors are called {name}")
        tensors[name] = tensor.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(encoded) + "\n", encoding="utf-8")


def read_tree(path: Path) -> Tree:
    """Read what :func:`write_tree` wrote. Raises :class:`StateUnreadable`."""
    described, stored = path.with_suffix(".json"), path.with_suffix(".safetensors")
    try:
        tensors = load_file(stored)
    except (OSError, SafetensorError) as error:
        raise StateUnreadable(f"{stored} cannot be read: {error}") from error
    try:
        return _decoded(json.loads(described.read_text(encoding="utf-8")), tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateUnreadable(f"{described} cannot be read: {type(error).__name__}: {error}") from error


def _encoded(tree: Tree, name: str) -> Any:
    """A tree as JSON: what JSON lacks is an object with one key, the name of its type."""
    if type(tree) in PLAIN:
        return tree
    if type(tree) is list:
        return [_encoded(value, _below(name, index)) for index, value in enumerate(tree)]
    if type(tree) is tuple:
        return {"tuple": [_encoded(value, _below(name, index)) for index, value in enumerate(tree)]}
    if type(tree) is dict:
        if wrong := [key for key in tree if type(key) not in (str, int)]:
            raise TypeError(f"{name or 'a state'} has the key {wrong[0]!r}, which is neither a string nor an integer")
        return {"dict": [[key, _encoded(value, _below(name, key))] for key, value in tree.items()]}
    if isinstance(tree, Tensor):
        return {"tensor": name}
    raise TypeError(f"{name or 'a state'} is of type {type(tree).__qualname__}, which cannot be saved without a pickle")


def _decoded(encoded: Any, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(encoded, list):
        return [_decoded(value, tensors) for value in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((kind, content),) = encoded.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "tuple":
            return tuple(_decoded(value, tensors) for value in content)
        case "dict":
            return {key: _decoded(value, tensors) for key, value in content}
    raise ValueError(f"{kind!r} is no type of a state")


def _below(name: str, key: object) -> str:
    return f"{name}/{key}" if name else str(key)
