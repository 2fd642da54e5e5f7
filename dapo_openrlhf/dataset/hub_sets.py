"""Data sets of the Hugging Face hub, by name: fetched once, kept as a folder that rows are read from like a user's."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.hub import prefer_cache
from dapo_openrlhf.whole_file import put_in_place

PREFIX = "hf:"

SPLITS = {"data.prompt_dataset": "data.prompt_split", "eval.dataset": "eval.split"}
"""For each setting that names sets the one that names their split."""

ONLY_SPLIT = "train"
"""The split of a plain file, which has no other."""


def local_path(name: str, *, setting: str, say: Callable[[str], None], split: str | None = None) -> Path:
    """The path of a file or folder; of ``hf:OWNER/NAME[@SUBSET][:SPLIT]`` the folder with what the hub has now.

    ``split``: the split of sets whose name gives none, as OpenRLHF takes it: of the hub's and of folders with several. Where the hub cannot be reached, or must not be asked, what was fetched before is taken, which ``say`` is told. Raises
    ``ConfigError`` that names ``setting``.
    """
    if not name.startswith(PREFIX):
        return Path(name) if split is None else _split_of(Path(name), split, setting)
    rest, _, own = name.removeprefix(PREFIX).partition(":")
    if own and split not in (None, own):
        raise ConfigError(_contradiction(name, own, split, setting))
    split = own or split
    repository, _, subset = rest.partition("@")
    if not repository or repository.count("/") > 1:
        raise ConfigError(f"{setting}: {name} is no name of a set; it has the form hf:OWNER/NAME[@SUBSET][:SPLIT]")
    folder = _folder(repository, subset, split or "train")
    trouble = prefer_cache(repository, kind="datasets")
    if trouble and folder.is_dir():
        say(f"{setting}: {name} is as it was fetched before: {trouble}")
        return folder
    return _fetched(repository, subset, split or "train", folder, f"{setting}: {name} cannot be loaded", trouble)


def _split_of(path: Path, split: str, setting: str) -> Path:
    """The folder of a split in a folder with several; a file, or a saved set without splits, as it is. Raises ``ConfigError``."""
    if (path / "dataset_dict.json").is_file():
        if not (path / split / "state.json").is_file():
            there = sorted(part.parent.name for part in path.glob("*/state.json"))
            raise ConfigError(f"{SPLITS[setting]}: {path} has no split {split!r}; it has {', '.join(there)}")
        return path / split
    if (path.parent / "dataset_dict.json").is_file() and path.name != split:
        raise ConfigError(_contradiction(str(path), path.name, split, setting))
    if not path.is_dir() and split != ONLY_SPLIT:
        raise ConfigError(
            f"{SPLITS[setting]}: {path} is a file, which has no split {split!r}; leave it out, and write hf:OWNER/NAME:{split} "
            "for sets of the hub"
        )
    return path


def _contradiction(name: str, own: str, split: str | None, setting: str) -> str:
    return f"{SPLITS[setting]}: {split!r}, but {name} ({setting}) names the split {own!r}; leave one of the two out"


def _folder(repository: str, subset: str, split: str) -> Path:
    """Where a set is kept: below the user's cache, by a readable name and a digest of the exact one."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    exact = "\0".join((repository, subset, split))
    readable = "-".join(filter(None, (repository.replace("/", "-"), subset, split)))
    safe = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in readable)
    return caches / "dapo_openrlhf" / "sets" / f"{safe}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _fetched(repository: str, subset: str, split: str, folder: Path, failed: str, trouble: str) -> Path:
    """Load the set and put it into the folder, in one piece."""
    loaded = load_set(repository, subset, split, failed=failed, trouble=trouble)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        loaded.save_to_disk(str(Path(unfinished) / "set"))
        put_in_place(Path(unfinished) / "set", folder)
    return folder


def load_set(repository: str, subset: str, split: str, *, failed: str, trouble: str) -> Any:
    """A set of the hub, through the package ``datasets``.

    ``trouble``: why the hub cannot be asked, or empty. Raises ``ConfigError``, which begins with ``failed``, without the package,
    and for a set that it cannot load.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{failed}: it needs the package datasets; `pip install datasets`, or give a file") from error
    try:
        return datasets.load_dataset(repository, subset or None, split=split)
    # RuntimeError: a set that needs a script of its own
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(f"{failed}: {trouble or error}") from error
