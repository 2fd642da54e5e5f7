"""Reads rows of .jsonl, .json and .parquet files (standard library; parquet through pyarrow)."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_openrlhf.config.errors import ConfigError

BLOCK = 256
"""Most rows of a block."""

Row = tuple[int, object]
"""Line of a .jsonl file, or row of another file, from 1, and its value; the value of a line that is not JSON is the
``ConfigError`` about it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a file's rows, which are parsed on demand, so that several processes can share a file."""

    first: int
    """Number of rows in the file before the block, blank lines not counted."""
    parse: Callable[[], list[Row]]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield all rows. Raises ``ConfigError`` for a file that cannot be read at all."""
    return itertools.chain.from_iterable(block.parse() for block in blocks(path))


def blocks(path: Path) -> Iterator[Block]:
    """Yield a file's blocks of rows in order. Raises ``ConfigError`` for a file that cannot be read at all."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path} (data.prompt_dataset or eval.dataset)")
    match path.suffix:
        case ".jsonl":
            return _lines(path)
        case ".json":
            return _listed(path)
        case ".parquet":
            return _batches(path)
    hint = "; unpack it" if path.suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else ""
    raise ConfigError(f"{path}: prompts are read from .jsonl, .json or .parquet, not {path.suffix or 'this'}{hint}")


def unit(path: Path) -> str:
    """The word for what a row's number counts in a file."""
    return "line" if path.suffix == ".jsonl" else "row"


def column(row: Mapping[str, object], key: str) -> object:
    """The value of a column, or of a dotted path into nested ones; None if there is none."""
    if key in row:
        return row[key]
    value: object = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def column_names(row: Mapping[str, object]) -> list[str]:
    """The names of the columns, nested ones as dotted paths."""
    return sorted(
        name
        for key, value in row.items()
        for name in ([f"{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [key])
    )


def _lines(path: Path) -> Iterator[Block]:
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for first in itertools.count(step=BLOCK):
            block = list(itertools.islice(lines, BLOCK))
            if not block:
                return
            yield Block(first, functools.partial(_parsed_lines, path, block))


def _parsed_lines(path: Path, lines: list[tuple[int, bytes]]) -> list[Row]:
    return [(number, _parsed(path, number, line)) for number, line in lines]


def _parsed(path: Path, number: int, line: bytes) -> object:
    try:
        return json.loads(line, object_pairs_hook=_mapping)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long, nested too deeply
        return ConfigError(f"{path}, line {number}: not valid JSON: {error}")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a mapping. Raises ``ValueError`` for a repeated name, as JSON readers differ in which one they keep."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one mapping")
    return made


def _listed(path: Path) -> Iterator[Block]:
    try:
        rows = json.loads(path.read_bytes(), object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # as in a line
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: holds one {type(rows).__name__}, not a list of rows")
    for first in range(0, len(rows), BLOCK):
        yield Block(first, functools.partial(_numbered, first, rows[first : first + BLOCK].copy))


def _batches(path: Path) -> Iterator[Block]:
    import pyarrow.parquet  # takes 0.3 s and most runs do not need it

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            first = 0
            for batch in file.iter_batches(batch_size=BLOCK):
                yield Block(first, functools.partial(_numbered, first, batch.to_pylist))
                first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not valid Parquet: {error}") from error


def _numbered(first: int, rows: Callable[[], list[Any]]) -> list[Row]:
    return list(enumerate(rows(), start=first + 1))
