"""``dapo-openrlhf verify``: the reward over a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dapo_openrlhf.__main__ import main

ROWS = [
    {"response": "so Answer: 7", "answer": "7", "prompt": "3+4="},
    {"response": r"\boxed{\sqrt{8}}", "answer": r"2\sqrt{2}"},
    {"response": "Answer: 8", "answer": 7},
    {"response": "it is 7", "answer": "7"},
    {"response": "Answer: x+11", "answer": "^^x"},
    {"response": "Answer: 0.5", "answer": 0.5},
]
VERDICTS = [True, True, False, False, None, True]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with responses, and a reward that gives their length."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "length.py").write_text(
        "def reward_func(queries, prompts, labels):\n"
        "    assert queries[0].startswith(prompts[0])\n"
        "    return {'rewards': len(queries[0]) - len(prompts[0])}\n"
    )
    return tmp_path


def verdicts(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "out.json").read_text())["verdicts"]
    assert all((row["correct"] is None) == (row["error"] is not None) for row in found)
    return found


@pytest.mark.parametrize("workers", ["1", "3"])
def test_verdicts_in_the_order_of_the_lines(folder: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    assert main(["verify", "responses.jsonl", "--json", "out.json", "--workers", workers]) == 0
    assert [row["correct"] for row in verdicts(folder)] == VERDICTS
    printed = capsys.readouterr().out
    assert "6 responses: 3 right, 2 wrong, 1 errors" in printed
    assert "verifications per second" in printed
    assert "line 5: the gold answer cannot be read: ^^x" in printed


def test_a_file_s_own_keys_and_blank_lines(folder: Path) -> None:
    (folder / "other.jsonl").write_text('\n{"text": "Answer: 7", "gold": "7"}\n\n')
    arguments = ["verify", "other.jsonl", "--response-key", "text", "--answer-key", "gold", "--json", "out.json"]
    assert main([*arguments, "--workers", "1"]) == 0
    assert [row["correct"] for row in verdicts(folder)] == [True]


def test_labels_as_they_come(folder: Path) -> None:
    """GSM8K's worked answers, numbers of JSON, a byte order mark, Windows' line ends."""
    labels = ["3 + 4 = 7\n#### 7", "#### 1,200", 7.0, 1e6, 10**30, 0.5]
    answers = ["7", "1200", "7", "1000000", "1" + "0" * 30, r"\frac12"]
    rows = [
        json.dumps({"response": f"Answer: {answer}", "answer": label})
        for answer, label in zip(answers, labels, strict=True)
    ]
    (folder / "other.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert main(["verify", "other.jsonl", "--json", "out.json", "--workers", "1"]) == 0
    assert [row["correct"] for row in verdicts(folder)] == [True] * len(labels)


def test_several_rewards(folder: Path) -> None:
    arguments = ["verify", "responses.jsonl", "--reward", "rule", "--reward", "length.py", "--weights", "2", "0.5"]
    assert main([*arguments, "--json", "out.json", "--workers", "1"]) == 0
    found = verdicts(folder)
    assert [row["correct"] for row in found] == VERDICTS
    # 2 * 1 + 0.5 * 12 characters; 2 * -1 + 0.5 * 9
    assert (found[0]["reward"], found[2]["reward"], found[4]["reward"]) == (8.0, 2.5, None)


def test_the_reward_of_a_run(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "actor.model_name_or_path: m\ndata.prompt_dataset: d\nreward: {remote_url: length.py, correct_from: 9}\n"
    )
    arguments = ["verify", "responses.jsonl", "--config", "run.yaml", "--json", "out.json", "--workers", "1"]
    assert main(arguments) == 0
    assert [row["correct"] for row in verdicts(folder)] == [True, True, True, False, True, True]
    assert main([*arguments, "--reward.correct_from", "12"]) == 0
    assert [row["correct"] for row in verdicts(folder)] == [True, True, False, False, True, False]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds list"),
        ('{"answer": "7"}', "'response' (--response-key) is no text: None"),
        ('{"response": 7, "answer": "7"}', "'response' (--response-key) is no text: 7"),
        ('{"response": "7", "answer": ""}', "'answer' (--answer-key): empty"),
        ('{"response": "7", "answer": ["7", "8"]}', "'answer' (--answer-key): a list of 2 answers"),
        ('{"response": "7", "answer": " "}', "'answer' (--answer-key): empty"),
        ('{"response": "7", "answer": NaN}', "'answer' (--answer-key): nan is no number"),
        ('{"response": "7", "answer": true}', "'answer' (--answer-key): True is no answer"),
        ('{"response": "7", "answer": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_a_broken_line_is_named(folder: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    with (folder / "responses.jsonl").open("a") as file:
        file.write(line + "\n")
    assert main(["verify", "responses.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "responses.jsonl, line 7: " in error and words in error


def test_a_line_that_is_no_utf_8_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "responses.jsonl").write_bytes(b'{"response": "\xff", "answer": "7"}\n')
    assert main(["verify", "responses.jsonl"]) == 2
    assert "responses.jsonl, line 1: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jsonl"], "cannot read missing.jsonl"),
        (["empty.jsonl"], "empty.jsonl holds no responses"),
        (["responses.jsonl", "--reward", "missing.py"], "there is no file missing.py"),
        (["responses.jsonl", "--reward", "gold"], "gold is no reward"),
        (["responses.jsonl", "--reward", "broken.py"], "No module named 'nowhere'"),
        (["responses.jsonl", "--weights", "1", "2"], "2 weights for 1 rewards"),
        (["responses.jsonl", "--reward.tiemout", "1"], "did you mean reward.timeout?"),
        (["responses.jsonl", "--train.seed", "1"], "train.seed: verify takes reward.* settings only"),
        (["responses.jsonl", "--json", "no/where.json"], "there is no folder no"),
        (["responses.jsonl", "--json", "."], "is a folder"),
        (["responses.parquet"], "not from parquet"),
        (["responses.jsonl", "--workers", "0"], "at least 1"),
        (["responses.jsonl", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_run_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (folder / "empty.jsonl").write_text("\n")
    (folder / "broken.py").write_text("import nowhere\n")
    assert main(["verify", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_verdicts_that_the_file_gives_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "judged.jsonl"
    rows = [("Answer: 7", "7", True), ("Answer: 8", "7", True), ("Answer: 4x=28", "28", False)]
    file.write_text(
        "".join(
            json.dumps({"response": response, "answer": gold, "expect": right}) + "\n" for response, gold, right in rows
        )
    )
    assert main(["verify", str(file)]) == 0
    assert "as judged there: 2 of 3; not in lines 2\n" in capsys.readouterr().out
