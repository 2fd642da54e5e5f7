"""Rows of files: every format gives the same ones, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.rows import BLOCK, blocks, column, column_names, read_rows

ROWS: list[dict[str, object]] = [
    {"question": "1 + 1 = ?", "answer": "2", "level": 1},
    {"question": "½ of «π»?", "answer": "π/2", "level": 2},
    {"question": "2 · 3 = ?", "answer": "6", "level": 3},
]

SUFFIXES = ("jsonl", "json", "parquet")


def write(folder: Path, suffix: str, rows: list[dict[str, object]]) -> Path:
    path = folder / f"prompts.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_every_format_gives_the_same_rows_in_blocks_that_know_their_place(
    tmp_path: Path, suffix: str, count: int
) -> None:
    rows: list[dict[str, object]] = [{"n": n, "text": f"½ {n}"} for n in range(count)]
    path = write(tmp_path, suffix, rows)
    assert list(read_rows(path)) == list(enumerate(rows, start=1))
    place = 0
    for block in blocks(path):
        assert block.first == place
        place += len(block.parse())
    assert place == count


def test_a_line_that_is_not_json_is_named_by_its_line_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\n   \n{"a": cut sh\n{"a": "\xff"}\n{"a": 1, "b": 2, "a": 3}\n'
        + b"[" * 99999
        + b"\n7\n"
    )
    (first, row), *broken, last = read_rows(path)
    assert (first, row) == (1, {"a": 1})
    assert last == (8, 7)
    assert [number for number, _ in broken] == [4, 5, 6, 7]
    for (number, error), words in zip(
        broken, ("Expecting value", "utf-8", "'a' stands twice", "recursion"), strict=True
    ):
        assert isinstance(error, ConfigError)
        assert str(error).startswith(f"{path}, line {number}: not valid JSON: ") and words in str(error)


def test_json_that_is_not_json_is_named_by_the_line_of_the_defect(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('[\n {"question": "a", "answer": "b"},\n {"question": "a" "answer": "b"}\n]')
    with pytest.raises(ConfigError, match=r"prompts\.json, line 3: not valid JSON"):
        list(read_rows(path))


@pytest.mark.parametrize("content", ["7", "null", '"text"', '{"question": "a", "answer": "b"}'])
def test_json_that_is_no_list_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"prompts\.json: .*not a list of rows"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", ("json", "parquet"))
@pytest.mark.parametrize("content", [b'{"question": "\xff\xfe"}', b"", b"PAR1" + b"\0" * 40])
def test_bytes_that_are_no_such_file_are_refused_with_the_files_name(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"prompts.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"prompts\.{suffix}"):
        list(read_rows(path))


def test_a_missing_file_and_another_kind_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere\.jsonl"):
        blocks(tmp_path / "nowhere.jsonl")
    (tmp_path / "prompts.csv").write_text("question,answer\n")
    with pytest.raises(ConfigError, match=r"not \.csv"):
        blocks(tmp_path / "prompts.csv")
    with gzip.open(tmp_path / "prompts.jsonl.gz", "wb") as file:
        file.write(b"{}\n")
    with pytest.raises(ConfigError, match=r"not \.gz; unpack it"):
        blocks(tmp_path / "prompts.jsonl.gz")


def test_a_dotted_path_reaches_into_nested_columns_and_the_real_column_wins() -> None:
    row = {"task": {"text": "nested", "more": {"deep": 0}}, "a.b": "5", "a": {"b": "wrong"}, "empty": {}}
    assert column(row, "task.text") == "nested"
    assert column(row, "task.more.deep") == 0
    assert column(row, "a.b") == "5"
    assert column(row, "task.none") is None and column(row, "empty.x") is None and column(row, "a.b.c") is None
    assert column_names(row) == ["a.b", "a.b", "empty", "task.more", "task.text"]
