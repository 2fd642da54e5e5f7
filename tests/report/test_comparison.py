"""Responses on disk, and two evaluations compared problem by problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import problems

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.pipeline.evaluation import Evaluation, ProblemResult, Response
from dapo_openrlhf.report.comparison import compare_verdicts
from dapo_openrlhf.report.responses import JudgedProblem, ResponsesError, read_verdicts, write_responses
from dapo_openrlhf.types import Segment


def evaluation(*verdicts: list[bool | None]) -> Evaluation:
    return Evaluation(
        results=tuple(
            ProblemResult(
                problem=problem,
                responses=tuple(
                    Response(text="½\nAnswer: 1", answer="1", correct=right, length=7, truncated=right is False)
                    if right is not None
                    else Response(error="engine_died: gone")
                    for right in row
                ),
            )
            for problem, row in zip(problems(len(verdicts)), verdicts, strict=True)
        ),
        samples=len(verdicts[0]),
        seconds=1.0,
        with_texts=True,
    )


def test_every_response_is_a_line_with_its_verdict(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "step-3.jsonl"
    write_responses(path, evaluation([True, None], [False, False]))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    first = problems(1)[0]
    assert lines[0] == {
        "problem": first.id, "prompt": first.text, "label": first.label, "sample": 0, "response": "½\nAnswer: 1",
        "answer": "1", "correct": True, "error": "", "length": 7, "truncated": False,
    }  # fmt: skip
    assert [(line["sample"], line["correct"], line["error"]) for line in lines] == [
        (0, True, ""), (1, None, "engine_died: gone"), (0, False, ""), (1, False, "")
    ]  # fmt: skip
    assert [(p.judged, p.right) for p in read_verdicts(path).values()] == [(1, 1), (2, 0)]
    assert [other.name for other in path.parent.iterdir()] == ["step-3.jsonl"]


def test_a_conversation_is_written_in_segments(tmp_path: Path) -> None:
    segments = (
        Segment(kind="action", text="<call>", tokens=3, reward=0.0),
        Segment(kind="observation", text="4", tokens=1),
        Segment(kind="action", text="4", tokens=2),
    )
    response = Response(text="<call>44", correct=True, length=5, segments=segments)
    measured = Evaluation(
        results=(ProblemResult(problem=problems(1)[0], responses=(response,)),), samples=1, seconds=1.0, with_texts=True
    )
    write_responses(tmp_path / "step-0.jsonl", measured)
    (line,) = (tmp_path / "step-0.jsonl").read_text().splitlines()
    assert json.loads(line)["segments"] == [
        {"kind": "action", "text": "<call>", "tokens": 3, "reward": 0.0},
        {"kind": "observation", "text": "4", "tokens": 1, "reward": None},
        {"kind": "action", "text": "4", "tokens": 2, "reward": None},
    ]


def verdicts(**right_of_four: int | None) -> dict[str, JudgedProblem]:
    """Problems by name: how many of four answers are right; None: none was judged."""
    return {
        name: JudgedProblem(prompt=name, label="1", judged=0 if right is None else 4, right=right or 0)
        for name, right in right_of_four.items()
    }


def test_problems_are_paired_and_the_difference_is_theirs() -> None:
    comparison = compare_verdicts(verdicts(a=0, b=2, c=4, d=1, e=None, only_first=4), verdicts(d=2, c=3, b=2, a=4, e=4))
    assert [(pair.first.prompt, pair.difference) for pair in comparison.pairs] == [
        ("a", 1.0), ("b", 0.0), ("c", -0.25), ("d", 0.25)
    ]  # fmt: skip
    assert (comparison.wins, comparison.losses, comparison.left_out) == (2, 1, 2)
    assert comparison.accuracies == (7 / 16, 11 / 16)
    assert comparison.difference.value == 0.25
    assert "no interval: it takes at least 5 problems" in str(comparison)
    assert [pair.first.prompt for pair in comparison.most_changed(2)] == ["a", "c"]
    assert comparison.as_dict()["ties"] == 1


def test_no_interval_has_width_zero() -> None:
    """Ten problems that are all alike in both, and one that is: nothing was seen to change, which is not certainty."""
    same = {str(index): 2 for index in range(10)}
    comparison = compare_verdicts(verdicts(**same), verdicts(**same))
    assert comparison.difference.value == 0.0
    assert comparison.difference.low < -0.02 and comparison.difference.high > 0.02
    one = str(compare_verdicts(verdicts(a=0), verdicts(a=4)))
    assert "0.0% -> 100.0% on 1 problem: +100.0 percentage points, no interval" in one


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ResponsesError, match=r"no problem was judged in both .*1 and 2 problems, 0 of them the same"):
        compare_verdicts(verdicts(a=1), verdicts(b=1, c=1))
    other = {"a": JudgedProblem(prompt="a", label="2", judged=1, right=1)}
    with pytest.raises(ResponsesError, match="label '1' in one file and '2' in the other"):
        compare_verdicts(verdicts(a=1), other)


def test_compare_prints_and_writes_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, result = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.json"
    write_responses(before, evaluation([False, False], [True, False]))
    write_responses(after, evaluation([True, True], [True, False]))
    assert main(["compare", str(before), str(after), "--json", str(result)]) == 0
    printed = capsys.readouterr().out
    assert "25.0% -> 75.0% on 2 problems: +50.0 percentage points, no interval: it takes at least 5 problems" in printed
    assert "1 better, 0 worse, 1 equal" in printed
    assert "0% -> 100%  question 0" in printed and "question 1" not in printed
    written = json.loads(result.read_text())
    assert written["difference"] == {"value": 0.5, "low": None, "high": None}
    assert [problem["difference"] for problem in written["by_problem"]] == [1.0, 0.0]


def test_of_long_prompts_what_tells_them_apart_is_shown() -> None:
    """Both begin and end with the same wrapper, and their problems with the same letter."""
    wrapper = (
        "Work through the problem below, step by step. " + "{} " + "Do not forget: the answer belongs on its own line."
    )
    tom = wrapper.replace("{}", "Tom has 3 pens. " + "He buys one more. " * 8)
    texts = [tom, wrapper.replace("{}", "Tim has none.")]
    lines = str(
        compare_verdicts(
            {text: JudgedProblem(prompt=text, label="1", judged=4, right=0) for text in texts},
            {text: JudgedProblem(prompt=text, label="1", judged=4, right=4) for text in texts},
        )
    ).splitlines()
    assert lines[2] == "     0% -> 100%  Tom has 3 pens. He buys one more. He buys one more. He buys one more. ..."
    assert lines[3] == "     0% -> 100%  Tim has none."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ('{"prompt": "a", "label": "1", "correct": true}\n{"prompt": "a"', "b.jsonl, line 2"),
        ('{"prompt": "a", "label": "1"}', "b.jsonl, line 1"),
        ("[1]", "b.jsonl, line 1"),
        (
            '{"prompt": "a", "label": "1", "correct": true}\n\n{"prompt": "a", "label": "2", "correct": true}',
            "b.jsonl, line 3: label '2' of a problem that had '1'",
        ),
        ("", "no problem was judged in both"),
    ],
)
def test_a_file_that_holds_no_responses_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_responses(first, evaluation([True]))
    if content is not None:
        second.write_text(content)
    assert main(["compare", str(first), str(second)]) == 2
    assert words in capsys.readouterr().err
