"""Looks at the files of a model's weights without reading them: whether all are there and whole (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a model's weights in one file, or with ``.index.json`` of the list of several."""


WEIGHTS_REMEDY = "copy or download the model again, whole"


def weights_trouble(name_or_path: str) -> str:
    """What is wrong with the weights in a model's folder; empty if nothing is, and for a name on the hub.

    Of a safetensors file the header is read, which says how long the file must be.
    """
    folder = Path(name_or_path)
    trouble = _trouble_of_folder(folder) if folder.is_dir() else ""
    return trouble and f"{folder}: {trouble}"


def _trouble_of_folder(folder: Path) -> str:
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                return _trouble_of_several(folder, _files(index))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                return f"{index.name} cannot be read ({error!r})"
        if (folder / name).is_file():
            return _trouble(folder / name)
    return f"it has no weights ({' or '.join(WEIGHTS)}, in one file or several)"


def _files(index: Path) -> list[str]:
    """The names of an index's files."""
    files = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    if not files or not all(isinstance(file, str) for file in files):
        raise ValueError("its weight_map names no files")
    return sorted(files)


def _trouble_of_several(folder: Path, files: Sequence[str]) -> str:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        return f"{len(missing)} of {len(files)} files of weights are missing, {missing[0]} first"
    return next(filter(None, (_trouble(folder / file) for file in files)), "")


def _trouble(file: Path) -> str:
    if not file.stat().st_size:
        return f"{file.name} is empty"
    if file.suffix != ".safetensors":
        return ""
    try:
        with safe_open(file, framework="numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"{file.name} is damaged, or was not copied whole ({error})"
