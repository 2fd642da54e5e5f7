"""Reads rows of .jsonl, .json, .csv and .parquet files, and of folders saved by the package datasets (standard library;
parquet and those folders through pyarrow)."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
    if path.is_dir():
        return _saved(_parts(path))
    if not path.is_file():
        several = "; several files are given one after the other, with blanks between them" if "," in path.name else ""
        raise ConfigError(f"there is no file {path} (data.prompt_dataset or eval.dataset){several}")
    match _kind(path):
        case ".jsonl":
            return _lines(path)
        case ".json":
            return _listed(path)
        case ".csv":
            return _table(path)
        case ".parquet":
            return _batches(path)
    hint = "; unpack it" if path.suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else ""
    raise ConfigError(
        f"{path}: prompts are read from .jsonl, .json, .csv (also with .gz behind), .parquet, or a folder saved by "
        f"datasets, not {path.suffix or 'this'}{hint}"
    )


def files_of(path: Path) -> list[Path]:
    """The files that hold the rows: the file itself, or those in a saved folder. Raises ``ConfigError``."""
    return _parts(path) if path.is_dir() else [path]


def unit(path: Path) -> str:
    """The word for what a row's number counts in a file."""
    return "line" if _kind(path) == ".jsonl" else "row"


def _kind(path: Path) -> str:
    """The suffix that tells the format; that before .gz for text."""
    before = Path(path.stem).suffix
    return before if path.suffix == ".gz" and before in (".jsonl", ".json", ".csv") else path.suffix


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # is one


def _whole_or_refused(path: Path, rows: Iterable[Block]) -> Iterator[Block]:
    """The blocks. Raises ``ConfigError`` for a packed file that is damaged or cut off."""
    try:
        yield from rows
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: not a whole gzip file: {error}") from error


def column(row: Mapping[str, object], key: str) -> object:
    """The value of a column, or of a dotted path into nested ones; None if there is none.

    A name that really has dots in it wins over a path, on every level.
    """
    if key in row:
        return row[key]
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        inner = row.get(".".join(parts[:end]))
        if isinstance(inner, dict) and (value := column(inner, ".".join(parts[end:]))) is not None:
            return value
    return None


def column_names(row: Mapping[str, object]) -> list[str]:
    """The names of the columns, nested ones as dotted paths."""
    return sorted(
        name
        for key, value in row.items()
        for name in ([f"{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [key])
    )


def _lines(path: Path) -> Iterator[Block]:
    return _whole_or_refused(path, _blocks_of_lines(path))


def _blocks_of_lines(path: Path) -> Iterator[Block]:
    with _open(path) as file:
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
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=_mapping)
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
    return _whole_or_refused(path, _blocks_of_list(path))


def _blocks_of_list(path: Path) -> Iterator[Block]:
    try:
        with _open(path) as file:
            rows = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        hint = "; a file with a row in each line is a .jsonl file" if error.msg == "Extra data" else ""
        raise ConfigError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}{hint}") from error
    except (ValueError, RecursionError) as error:  # as in a line
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: holds one {type(rows).__name__}, not a list of rows")
    for first in range(0, len(rows), BLOCK):
        yield Block(first, functools.partial(_numbered, first, rows[first : first + BLOCK].copy))


def _table(path: Path) -> Iterator[Block]:
    return _whole_or_refused(path, _blocks_of_table(path))


def _blocks_of_table(path: Path) -> Iterator[Block]:
    """Every value is text, of any length. A byte-order mark, as spreadsheets write it, is no part of the first name."""
    with _open(path) as file, _fields_of_any_length():
        try:
            lines = csv.reader(io.StringIO(file.read().decode("utf-8-sig"), newline=""), strict=True)
            names = next(lines, [])
            if len(set(names)) != len(names) or not all(names):
                raise ConfigError(f"{path}, line 1: the columns' names are {names}; each needs one of its own")
            rows = [_row_of_table(path, names, number, values) for number, values in enumerate(filter(None, lines), 1)]
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not text in UTF-8: {error}") from error
        except csv.Error as error:
            raise ConfigError(f"{path}, line {lines.line_num}: not valid CSV: {error}") from error
    for first in range(0, len(rows), BLOCK):
        yield Block(first, functools.partial(_numbered, first, rows[first : first + BLOCK].copy))


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the package's bound on a value, 128 KiB, which holds for the whole process."""
    bound = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(bound)


def _row_of_table(path: Path, names: list[str], number: int, values: list[str]) -> object:
    if len(values) != len(names):
        return ConfigError(f"{path}, row {number}: {len(values)} values for {len(names)} columns")
    return dict(zip(names, values, strict=True))


def _parts(folder: Path) -> list[Path]:
    """The files of a set that ``Dataset.save_to_disk`` has written, in order. Raises ``ConfigError``."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(str(path.parent) for path in folder.glob("*/state.json"))
        raise ConfigError(f"{folder}: holds splits; name one of {', '.join(splits)}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        parts = [folder / str(part["filename"]) for part in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: is a folder, but none that datasets has saved (save_to_disk), with a state.json; name a file in it"
        ) from error
    if missing := [part for part in parts if not part.is_file()]:
        raise ConfigError(f"{folder}: {missing[0].name} is missing, which state.json names")
    return parts


def _saved(parts: list[Path]) -> Iterator[Block]:
    import pyarrow.ipc

    first = 0
    for part in parts:
        try:
            with pyarrow.memory_map(str(part)) as source, pyarrow.ipc.open_stream(source) as batches:
                for whole in batches:
                    for begin in range(0, len(whole), BLOCK):
                        batch = whole.slice(begin, BLOCK)
                        yield Block(first, functools.partial(_numbered, first, batch.to_pylist))
                        first += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{part}: not a file of datasets: {error}") from error


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
