"""Rows of files: every format gives the same ones, and what cannot be read is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.cache import digest_of
from dapo_openrlhf.dataset.rows import BLOCK, blocks, column, column_names, files_of, read_rows, unit

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


def test_lines_in_a_json_file_point_to_the_other_suffix(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('{"question": "a"}\n{"question": "b"}\n')
    with pytest.raises(
        ConfigError, match=r"prompts\.json, line 2: not valid JSON.*a row in each line is a \.jsonl file"
    ):
        list(read_rows(path))


def test_marks_and_ends_of_lines_of_other_systems(tmp_path: Path) -> None:
    """A byte-order mark before any line, as of files put together, and CRLF; UTF-16 is refused line by line, none is read."""
    row = b'{"a": 1}'
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n\xef\xbb\xbf" + row + b"\r\n")
    assert list(read_rows(path)) == [(1, {"a": 1}), (3, {"a": 1})]
    (tmp_path / "prompts.json").write_bytes(b"\xef\xbb\xbf[" + row + b"]")
    assert list(read_rows(tmp_path / "prompts.json")) == [(1, {"a": 1})]
    path.write_bytes("\n".join([row.decode()] * 4).encode("utf-16"))
    assert {type(value) for _, value in read_rows(path)} == {ConfigError}


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
    with pytest.raises(ConfigError, match=r"there is no file .*a,b\.jsonl .*with blanks between them"):
        blocks(tmp_path / "a,b.jsonl")
    (tmp_path / "prompts.tsv").write_text("question\tanswer\n")
    with pytest.raises(ConfigError, match=r"not \.tsv"):
        blocks(tmp_path / "prompts.tsv")
    (tmp_path / "prompts.parquet.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"not \.gz; unpack it"):
        blocks(tmp_path / "prompts.parquet.gz")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_packed_text_is_read_like_the_text(tmp_path: Path, suffix: str) -> None:
    plain = tmp_path / "prompts.csv" if suffix == "csv" else write(tmp_path, suffix, ROWS)
    if suffix == "csv":
        plain.write_text("a,b\n1,2\n", encoding="utf-8")
    packed = tmp_path / f"{plain.name}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_rows(packed)) == list(read_rows(plain)) != []
    assert unit(packed) == unit(plain)
    for damaged in (packed.read_bytes()[:-9], b"no gzip", packed.read_bytes()[:20] + b"\xff" * 30):
        packed.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"prompts\..*\.gz: not a whole gzip file"):
            list(read_rows(packed))


def test_a_table_of_text(tmp_path: Path) -> None:
    """A spreadsheet's byte-order mark, a comma, a quotation mark and a line end in a value, a blank line, a short row."""
    path = tmp_path / "prompts.csv"
    path.write_bytes('\ufeffquestion,answer\r\n"1,000 ""and"" 1\r\nis?",1001\r\n\r\n½,\r\nalone\r\n'.encode())
    *rows, (number, short) = read_rows(path)
    assert rows == [
        (1, {"question": '1,000 "and" 1\r\nis?', "answer": "1001"}),
        (2, {"question": "½", "answer": ""}),
    ]
    assert number == 3 and isinstance(short, ConfigError) and "row 3: 1 values for 2 columns" in str(short)
    path.write_text("a,b\none\u2028two,three\x0bfour\n", encoding="utf-8")
    assert list(read_rows(path)) == [(1, {"a": "one\u2028two", "b": "three\x0bfour"})], "no ends of lines in CSV"
    many = tmp_path / "many.csv"
    many.write_text("n\n" + "".join(f"{n}\n" for n in range(2 * BLOCK + 3)))
    assert [block.first for block in blocks(many)] == [0, BLOCK, 2 * BLOCK]
    assert list(read_rows(many))[-1] == (2 * BLOCK + 3, {"n": str(2 * BLOCK + 2)})


def test_a_value_of_a_table_may_be_as_long_as_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(f'a\n"{"x" * 200_000}"\n')
    bound = csv.field_size_limit()
    assert list(read_rows(path)) == [(1, {"a": "x" * 200_000})]
    assert csv.field_size_limit() == bound, "which holds for the whole process"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,a\n1,2\n", "line 1: the columns' names are"),
        (b"a,\n1,2\n", "line 1: the columns' names are"),
        (b'a,b\n"1,2\n', "not valid CSV"),
        (b"a\n\xff\n", "not text in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "prompts.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"prompts\.csv.*{words}"):
        list(read_rows(tmp_path / "prompts.csv"))


def test_a_folder_that_datasets_has_saved(tmp_path: Path) -> None:
    """In two files, with a nested column; a change of either is another digest."""
    datasets = pytest.importorskip("datasets")
    rows = [{"input": f"{n}+1=", "reward_model": {"ground_truth": str(n + 1)}} for n in range(BLOCK + 9)]
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(rows).save_to_disk(str(folder), num_shards=2)
    assert list(read_rows(folder)) == list(enumerate(rows, start=1))
    before = digest_of(folder)
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_list(rows[::-1]).save_to_disk(str(tmp_path / "other"), num_shards=2)
    assert digest_of(tmp_path / "other") != before == digest_of(folder)
    both = tmp_path / "both"
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:3])
    ).save_to_disk(str(both))
    with pytest.raises(ConfigError, match=r"holds splits; name one of .*both/test, .*both/train"):
        blocks(both)
    assert len(list(read_rows(both / "test"))) == 3
    part = next(folder.glob("*.arrow"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ConfigError, match="not a file of datasets"):
        list(read_rows(folder))
    part.unlink()
    with pytest.raises(ConfigError, match=r"saved: .*\.arrow is missing"):
        files_of(folder)
    with pytest.raises(ConfigError, match=r"is a folder, but none that datasets has saved"):
        blocks(tmp_path)


def test_a_dotted_path_reaches_into_nested_columns_and_the_real_column_wins() -> None:
    row = {"task": {"text": "nested", "more": {"deep": 0}}, "a.b": "5", "a": {"b": "wrong"}, "empty": {}}
    assert column(row, "task.text") == "nested"
    assert column(row, "task.more.deep") == 0
    assert column(row, "a.b") == "5"
    assert column(row, "task.none") is None and column(row, "empty.x") is None and column(row, "a.b.c") is None
    literal = {"a.b": {"c": 1, "d.e": 2}, "a": {"b": {"c": 3, "f": 4}}}
    assert [column(literal, key) for key in ("a.b.c", "a.b.d.e", "a.b.f", "a.b.none")] == [1, 2, 4, None]
    assert column_names(row) == ["a.b", "a.b", "empty", "task.more", "task.text"]
