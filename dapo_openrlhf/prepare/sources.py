"""The sources of rows: a file, a Hugging Face data set, a procedural task."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.hub import prefer_cache
from dapo_openrlhf.dataset.hub_sets import load_set
from dapo_openrlhf.dataset.rows import read_rows, unit
from dapo_openrlhf.prepare.labels import is_integer
from dapo_openrlhf.prepare.rows import Source

SEED_STRIDE = 10**6
"""Distance between seeds: reasoning-gym makes item i from seed + i, so neighbouring seeds would share most items."""


def file_source(path: Path) -> Source:
    """A .jsonl, .json, .csv or .parquet file as a source. Raises ``ConfigError`` if the file does not exist."""
    if not path.is_file():
        raise ConfigError(
            f"there is no file {path}; a source is a .jsonl, .json, .csv or .parquet file, hf:OWNER/NAME[@CONFIG][:SPLIT] or "
            "reasoning-gym:TASK"
        )

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return Source(
        name=path.name,
        rows=lambda: ((f"{path.name}, {unit(path)} {number}", row) for number, row in read_rows(path)),
        sha256=digest,
    )


def hugging_face_source(name: str) -> Source:
    """The set ``OWNER/NAME[@CONFIG][:SPLIT]``, by default split ``train``, through the package ``datasets``.

    The package caches the set. Raises ``ConfigError`` without the package, and for a data set that it cannot load.
    """
    dataset, _, split = name.partition(":")
    repository, _, subset = dataset.partition("@")
    trouble = prefer_cache(repository, kind="datasets")
    loaded = load_set(repository, subset, split or "train", failed=f"hf:{name}: cannot be loaded", trouble=trouble)
    return _listed(f"hf:{name}", loaded)


def reasoning_gym_source(task: str, *, size: int, seed: int, settings: Mapping[str, object], label: str) -> Source:
    """``size`` items of a procedural task as rows with ``input`` and ``label``.

    ``label``: ``answer`` is the task's own answer, for the rule reward; ``entry`` is everything that the task's scorer
    needs, as JSON, for ``data/reasoning_gym_reward.py``; ``auto`` takes the answers if all of them are integers. Raises
    ``ConfigError`` for an unknown task or setting, or one that cannot be written as JSON.
    """
    if not 1 <= size <= SEED_STRIDE:
        raise ConfigError(f"--size: {size} is not between 1 and {SEED_STRIDE}")
    # Only the zebra puzzles use this SAT solver, which comes as source; the stand-in saves the need for a compiler.
    sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
    import reasoning_gym

    try:
        items = list(reasoning_gym.create_dataset(task, size=size, seed=seed * SEED_STRIDE, **settings))
        entries = [json.dumps({"task": task, "entry": item}) for item in items]
    except (ValueError, TypeError, AssertionError, AttributeError) as error:
        raise ConfigError(f"reasoning-gym:{task}: {error}") from error
    if label == "auto":
        integers = all(is_integer(str(item["answer"])) for item in items)
        label = "answer" if integers else "entry"
    labels = [item["answer"] for item in items] if label == "answer" else entries
    return _listed(
        f"reasoning-gym:{task}",
        [{"input": item["question"], "label": answer} for item, answer in zip(items, labels, strict=True)],
    )


def _listed(name: str, rows: Iterable[dict[str, object]]) -> Source:
    """A source that gives ``rows``, which are iterated more than once."""

    def numbered() -> Iterator[tuple[str, object]]:
        for number, row in enumerate(rows, start=1):
            yield f"{name}, row {number}", row

    def digest() -> str:
        sha = hashlib.sha256()
        for row in rows:
            sha.update(json.dumps(row, sort_keys=True, default=str).encode())
        return sha.hexdigest()

    return Source(name=name, rows=numbered, sha256=digest)
