"""Verdicts that a mathematician would give, from extraction to algebra, and what they rest on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from dapo_openrlhf.judge import algebra
from dapo_openrlhf.judge.latex import _Reader, read
from dapo_openrlhf.judge.process import Judge
from dapo_openrlhf.judge.settings import JudgeSettings
from dapo_openrlhf.verifier import Algebra

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "answer_pairs.jsonl").read_text(encoding="utf-8").splitlines()
]
"""``answer`` stands for an answer line and for a box with it; ``response`` is a whole one."""


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """The rule."""
    with Judge(JudgeSettings(timeout=HANG_SECONDS)) as judge:
        yield judge


def responses(pair: dict[str, str]) -> list[str]:
    answer = pair.get("answer")
    return [pair["response"]] if answer is None else [f"so\nAnswer: {answer}", rf"so \boxed{{{answer}}}."]


@pytest.mark.parametrize("correct", [True, False])
def test_verdicts(judge: Judge, correct: bool) -> None:
    found = [
        (response, pair["label"], judgement.error)
        for pair in PAIRS
        if pair["correct"] is correct
        for response in responses(pair)
        if (judgement := judge.judge(response, label=pair["label"])).score is None
        or judgement.score.correct is not correct
    ]
    assert not found


def test_there_are_many_of_both_kinds() -> None:
    assert sum(pair["correct"] for pair in PAIRS) > 150 < sum(not pair["correct"] for pair in PAIRS)


READABLE = [
    "x^2", "2x^2+1", "x_1", "x_{12}+1", "a^2+b^2", "y=x^2", "x^{2}+y^{2}=r^{2}", "x_1^2", "x^2_1", r"\log_2 x^2", "x^{-1}",
    "x^2!", "f^{-1}(x)", r"\sin^2 x", r"\sum_{i=1}^{3} i^2", "x^{y^2}", "2x^3y^2", r"\frac{n^2}{2}", r"\pi^2", "e^{-x^2}",
    "(1,2)", r"\{1,2\}", r"(-\infty,2)\cup[3,\infty)", "1<x<2", "1,2", r"\pm 2", "2.50", "1,234", r"\sqrt[3]{2}",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
]  # fmt: skip


@pytest.mark.parametrize("text", READABLE)
def test_the_fast_way_through_the_grammar_finds_the_same_or_nothing(text: str) -> None:
    try:
        fast = repr(_Reader(is_real=True, fast=True).parse(text))
    except Exception:
        fast = ""
    assert fast in ("", repr(_Reader(is_real=True, fast=False).parse(text)))
    assert fast or ("_" in text and "^" in text), "the slow way is for both kinds of scripts only"


def test_what_is_no_mathematics_reads_as_nothing() -> None:
    assert [read(text) for text in ("", "^", r"\frac{1}{", "(1,2", r"\foo{")] == [None] * 5


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


def test_an_expression_is_read_once_and_in_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs of a question of algebra, counted: what is slow happens to no ordinary answer, right or wrong."""
    read.cache_clear()
    readings: list[bool] = []
    simplified: list[str] = []
    parse, verify = _Reader.parse, algebra.verify
    monkeypatch.setattr(_Reader, "parse", lambda self, text: readings.append(self._fast) or parse(self, text))
    monkeypatch.setattr(algebra, "verify", lambda *a, **kw: simplified.append(str(a)) or verify(*a, **kw))
    for number in range(200, 205):
        for answer, label, correct in KINDS:
            question = Algebra(answer=answer.format(number, number + 1), label=label.format(number, number + 1))
            assert algebra.equal(question) is correct
    questions = 5 * len(KINDS)
    assert readings == [True] * len(readings), "the slow way is several times as slow"
    assert len(readings) <= 2 * questions
    assert len(simplified) <= questions // 2, "most are decided by multiplying out, or by one value"


def test_a_groups_gold_answer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read.cache_clear()
    texts: list[str] = []
    parse = _Reader.parse
    monkeypatch.setattr(_Reader, "parse", lambda self, text: texts.append(text) or parse(self, text))
    for number in range(16):
        assert not algebra.equal(Algebra(answer=rf"{number}\sqrt{{5}}", label=r"77\sqrt{3}"))
    assert len(texts) == 17
