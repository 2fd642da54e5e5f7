"""Verdicts that a mathematician would give, from extraction to algebra, and what they rest on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapo_openrlhf.rewards.process import RewardProcess
from dapo_openrlhf.rewards.settings import RewardSettings

PAIRS = [
    json.loads(line)
    for file in ("answer_pairs.jsonl", "answer_classes.jsonl")
    for line in (Path(__file__).parents[1] / "data" / file).read_text(encoding="utf-8").splitlines()
]
"""``answer`` stands for an answer line and for a box with it; ``response`` is a whole one."""


@pytest.fixture(scope="module")
def process() -> Iterator[RewardProcess]:
    """The rule."""
    with RewardProcess(RewardSettings(timeout=30.0)) as process:
        yield process


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def responses(pair: dict[str, str]) -> list[str]:
    answer = pair.get("answer")
    return [pair["response"]] if answer is None else [f"so\nAnswer: {answer}", rf"so \boxed{{{answer}}}."]


@pytest.mark.parametrize("correct", [True, False])
def test_verdicts(process: RewardProcess, correct: bool) -> None:
    found = [
        (response, pair["label"], scored.error)
        for pair in PAIRS
        if pair["correct"] is correct
        for response in responses(pair)
        if (scored := process.score(response, label=pair["label"])).score is None or scored.score.correct is not correct
    ]
    assert not found


def test_there_are_many_of_both_kinds_in_every_class() -> None:
    assert sum(pair["correct"] for pair in PAIRS) > 900 and sum(not pair["correct"] for pair in PAIRS) > 600
    classes = {pair["class"] for pair in PAIRS if "class" in pair}
    for name in classes:
        verdicts = [pair["correct"] for pair in PAIRS if pair.get("class") == name]
        assert verdicts.count(True) >= 6 <= verdicts.count(False), name
    assert len(classes) >= 20


@pytest.mark.parametrize("right", [True, False])
def test_an_answer_and_its_gold_one_may_change_places(process: RewardProcess, right: bool) -> None:
    """But for what a label does not say: which name was asked for, that a comma is a decimal one."""
    one_way = {"half-solved answers", "decimal commas", "where the answer stands"}
    swapped = [
        (pair["label"], pair["answer"])
        for pair in PAIRS
        if pair["correct"] is right and "answer" in pair and pair.get("class", "half-solved answers") not in one_way
    ]
    assert len(swapped) > 300
    asked_for = {"x+y=5", "x+y+z=10", "2,7", "A,C"}  # a sum that was asked for, a decimal comma, several choices
    found = [
        (answer, label, scored.error)
        for answer, label in swapped
        if answer not in asked_for
        and (
            (scored := process.score(f"Answer: {answer}", label=label)).score is None
            or scored.score.correct is not right
        )
    ]
    assert not found


@pytest.mark.parametrize(
    "label",
    ["E_1", r"3M_{\odot}", r"\frac{v^2}{2g}", r"x_{0}\cos(\omega t)+\dot{x}_{0}\sin(\omega t)/\omega", r"(n-2)!"],
)
def test_a_readable_gold_answer_decides(process: RewardProcess, label: str) -> None:
    for answer in ("5", "x", r"\frac{1}{2}", "(1,2)", "x=3"):
        score = process.score(f"Answer: {answer}", label=label).score
        assert score is not None and not score.correct


def test_a_number_is_wanted_where_the_label_is_one() -> None:
    with RewardProcess(RewardSettings(answer_form="number", timeout=30.0)) as process:
        for answer, label, correct in [
            ("17*23", "391", False),
            ("391", "391", True),
            (r"17 \times 23", "391", False),
            (r"2\sqrt{2}", r"\sqrt{8}", True),
        ]:
            score = process.score(f"Answer: {answer}", label=label).score
            assert score is not None and score.correct is correct


def test_an_unfinished_thought_is_not_rewarded(process: RewardProcess) -> None:
    thought = "so " * 900
    for response, prompt in [
        (rf"<think>{thought}\boxed{{7}}", ""),
        (rf"{thought}\boxed{{7}}", "3+4=\n<think>\n"),
        ("Answer: 7", "<think>"),
    ]:
        score = process.score(response, label="7", prompt=prompt).score
        assert score is not None and not score.correct and score.answer is None
    score = process.score(rf"{thought}</think>\boxed{{7}}", label="7", prompt="<think>").score
    assert score is not None and score.correct and score.answer == "7"


KINDS = [
    (r"{0}\sqrt{{3}}+1", r"1+\sqrt{{3}}\cdot {0}", True),
    (r"\frac{{{0}\pi}}{{7}}", r"\frac{{{0}}}{{7}}\pi", True),
    ("({0},{1})", r"({0},\frac{{{1}0}}{{10}})", True),
    ("{0}, {1}", r"\{{{1},{0}\}}", True),
    ("{0}x+{1}", "{1}+{0}x", True),
    ("x^2+{0}", "{1}+x^2", False),
    (r"{0}\sqrt{{2}}", r"{1}\sqrt{{2}}", False),
    ("[{0},{1})", "[{0},{1}]", False),
]


def test_500_expressions_a_second_and_core_read_for_the_first_time(process: RewardProcess) -> None:
    """Both processes' processor time, for questions of algebra that repeat neither answer nor label.

    The best of three batches: other work on the machine takes the caches away, and its time is not ours.
    """
    _processor_seconds(process, range(100, 103))
    batches = [range(first, first + 25) for first in (200, 300, 400)]
    used = min(_processor_seconds(process, numbers) for numbers in batches)
    assert used < 1 / 500, f"{1 / used:.0f} a second"


def _processor_seconds(process: RewardProcess, numbers: range) -> float:
    """Per question, of every kind for every number."""
    own, other = time.process_time(), processor_seconds(process.pid)
    for number in numbers:
        for answer, label, correct in KINDS:
            response = f"Answer: {answer.format(number, number + 1)}"
            score = process.score(response, label=label.format(number, number + 1)).score
            assert score is not None and score.correct is correct, response
    used = time.process_time() - own + processor_seconds(process.pid) - other
    return used / (len(numbers) * len(KINDS))
