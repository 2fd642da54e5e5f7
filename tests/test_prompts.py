"""The prompt set: how it is read and in which order it comes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from fakes import prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.config import ConfigError
from dapo_openrlhf.prompts import PromptStream, chat_turns, load_prompts
from dapo_openrlhf.types import Prompt

# ---------------------------------------------------------------- order


def take(stream: PromptStream, count: int) -> list[int]:
    return [prompt.id for prompt in islice(iter(stream.next, None), count)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(count=st.integers(1, 40), seed=st.integers(0, 1000))
def test_each_episode_holds_each_prompt_once(count: int, seed: int) -> None:
    stream = PromptStream(prompts(count), seed=seed)
    for _ in range(3):
        assert sorted(take(stream, count)) == list(range(count))


def test_the_order_depends_on_seed_and_episode_and_on_nothing_else() -> None:
    orders = {}
    for seed in range(3):
        stream = PromptStream(prompts(30), seed=seed)
        again = PromptStream(prompts(30), seed=seed)
        for episode in range(3):
            orders[seed, episode] = tuple(take(stream, 30))
            assert orders[seed, episode] == tuple(take(again, 30))
    assert len(set(orders.values())) == 9
    assert tuple(range(30)) not in orders.values()


def test_neighbouring_seeds_and_episodes_do_not_share_an_order() -> None:
    """Seed 1 in episode 0 is not seed 0 in episode 1, as it would be if the two were added."""
    first, second = PromptStream(prompts(30), seed=0), PromptStream(prompts(30), seed=1)
    take(first, 30)
    assert take(first, 30) != take(second, 30)


def test_prompts_put_back_come_first_and_in_turn() -> None:
    reference = take(PromptStream(prompts(10), seed=7), 10)
    stream = PromptStream(prompts(10), seed=7)
    taken = [stream.next() for _ in range(4)]
    stream.put_back(taken[2])
    stream.put_back(taken[0])
    assert take(stream, 8) == [reference[2], reference[0], *reference[4:]]


def test_an_empty_prompt_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        PromptStream([], seed=0)


# ---------------------------------------------------------------- reading

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


def load(path: Path, template: str | None = None) -> list[Prompt]:
    return load_prompts(path, input_key="question", label_key="answer", input_template=template)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, ROWS)
    assert load(path) == [
        Prompt(
            id=i,
            text=str(row["question"]),
            label=row["answer"],
            columns={"level": i + 1},
            source=f"{path}, row {i + 1}",
        )
        for i, row in enumerate(ROWS)
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("column", "setting"),
    [("question", "data.input_key"), ("answer", "data.label_key")],
)
@pytest.mark.parametrize("broken", [None, ""])
def test_a_row_without_a_value_is_named_by_file_and_row(
    tmp_path: Path, suffix: str, column: str, setting: str, broken: str | None
) -> None:
    rows = [*ROWS[:2], ROWS[2] | {column: broken}]
    path = write(tmp_path, suffix, rows)
    with pytest.raises(ConfigError) as raised:
        load(path)
    words = str(raised.value)
    assert words.startswith(f"{path}, row 3: column {column!r} ({setting}) is missing or empty")
    assert "['answer', 'level', 'question']" in words


@pytest.mark.parametrize("suffix", ("jsonl", "json"))
def test_a_row_that_is_no_mapping_is_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, [ROWS[0], ["not", "a", "row"]])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"prompts\.jsonl?, row 2: holds list, not a mapping"):
        load(path)


def test_a_line_of_jsonl_that_is_not_json_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + '{"question": "cut sh\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl, line 3: not valid JSON"):
        load(path)


def test_json_that_is_not_json_is_named_by_the_line_of_the_defect(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('[\n {"question": "a", "answer": "b"},\n {"question": "a" "answer": "b"}\n]')
    with pytest.raises(ConfigError, match=r"prompts\.json, line 3: not valid JSON"):
        load(path)


@pytest.mark.parametrize("content", ["7", "null", '"text"', '{"question": "a", "answer": "b"}'])
def test_json_that_is_no_list_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"prompts\.json: .*not a list of rows"):
        load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_that_are_no_text_are_refused_with_the_files_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompts.{suffix}"
    path.write_bytes(b'{"question": "\xff\xfe"}')
    with pytest.raises(ConfigError, match=rf"prompts\.{suffix}"):
        load(path)


def test_blank_lines_are_skipped_and_ids_stay_dense(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n   \n" + json.dumps(ROWS[2]) + "\n\n")
    assert [(prompt.id, prompt.label) for prompt in load(path)] == [(0, "2"), (1, "6")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_chat_is_kept_as_its_json(tmp_path: Path, suffix: str) -> None:
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "½ of 4?"}]
    (prompt,) = load(write(tmp_path, suffix, [{"question": chat, "answer": "2"}]))
    assert json.loads(prompt.text) == chat
    assert "½" in prompt.text


@pytest.mark.parametrize("label", [0, 42, 1.5, "7", ["7"], {"want": [1, None]}])
def test_a_label_is_the_rows_own_value(tmp_path: Path, label: object) -> None:
    (prompt,) = load(write(tmp_path, "jsonl", [{"question": "how many?", "answer": label}]))
    assert prompt.label == label


def test_the_template_is_put_around_every_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"question": "what is {x} in {}?", "answer": "1"}])
    (prompt,) = load(path, "Solve.\n\n{}\n\nAnswer {braces}:")
    assert prompt.text == "Solve.\n\nwhat is {x} in {}?\n\nAnswer {braces}:"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_rows_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match="holds no prompts"):
        load(write(tmp_path, suffix, []))


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere\.jsonl"):
        load(tmp_path / "nowhere.jsonl")
    (tmp_path / "prompts.csv").write_text("question,answer\n")
    with pytest.raises(ConfigError, match=r"not \.csv"):
        load(tmp_path / "prompts.csv")


@pytest.mark.parametrize(
    "text", ["1+1=", "[0, 1) is half open. Is 1 in it?", "[asy] draw((0,0)--(1,1)); [/asy]", "[1, 2]"]
)
def test_a_text_that_only_begins_like_a_chat_list_is_one_turn_of_the_user(text: str) -> None:
    assert chat_turns(text) == [{"role": "user", "content": text}]


def test_a_chat_list_comes_back_as_it_was_read(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"content": "½ of 4?", "role": "user"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"input": turns, "label": "2"}) + "\n")
    (prompt,) = load_prompts(tmp_path / "chat.jsonl", input_key="input", label_key="label")
    assert chat_turns(prompt.text) == turns
