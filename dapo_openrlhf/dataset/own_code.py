"""Finds the Python that comes with a model and would run when it is loaded (standard library; transformers for the hub)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError

FILES = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files of a model in which ``auto_map`` names classes of its own."""
FILES_ON_THE_HUB = FILES[:2]
"""Those of them that are fetched from the Hugging Face hub anyway."""


def refuse_own_code(model: str, *, setting: str, remedy: str) -> None:
    """Raise ``ConfigError`` for a folder, or a name on the hub, whose files name Python of its own.

    ``setting`` is where the model was given, and ``remedy`` what allows its code.
    """
    for file, classes in own_code(model):
        raise ConfigError(
            f"{setting}: {file} names Python of the model's own ({classes}, by auto_map), which loading the model would "
            f"run; read it, then allow it with {remedy}"
        )


def own_code(model: str) -> Iterator[tuple[Path, str]]:
    """Each file of a model that names Python of its own, with the classes that it names."""
    for file in _files_of(model):
        try:
            named = json.loads(file.read_text(encoding="utf-8"))["auto_map"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # there is none; whoever loads the file says what else is wrong with it
        if named:
            yield file, ", ".join(_classes(named))


def _files_of(model: str) -> Iterator[Path]:
    if Path(model).is_dir():
        yield from (Path(model, name) for name in FILES)
        return
    from transformers.utils.hub import cached_file

    for name in FILES_ON_THE_HUB:
        try:
            found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        except OSError:  # the hub is away, or has no such model; whoever loads the model says so
            return
        if found is not None:
            yield Path(found)


def _classes(named: object) -> Iterator[str]:
    """The names in an ``auto_map``: a text, or a list or mapping of them."""
    match named:
        case dict():
            yield from _classes([*named.values()])
        case list():
            for part in named:
                yield from _classes(part)
        case None:
            return
        case _:
            yield str(named)
