"""Reflective phrases in kept responses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dapo_openrlhf.report.reflection import KeptResponse, PhraseCounter, read_kept_responses, samples_text


def response(text: str, *, correct: bool | None = True, prompt: str = "p") -> KeptResponse:
    return KeptResponse(prompt=prompt, label="1", text=text, correct=correct, length=len(text))


def test_phrases_are_counted_as_whole_words_in_any_case() -> None:
    found = PhraseCounter(["wait", "let me check"]).count(
        [
            response("Wait, wait: LET ME CHECK that."),
            response("The waiter awaits a checkmate; let me checkmate.", correct=True),
            response("wait", correct=False),
            response("wait", correct=None),
        ]
    )
    assert (found.responses, found.reflective, found.right_reflective) == (4, 3, 1)
    assert found.phrases == {"wait": 4, "let me check": 1}
    assert found.share == 0.75


def test_of_two_phrases_in_one_place_the_longer_counts() -> None:
    found = PhraseCounter(["let me", "let me check", "check"]).count([response("let me check, let me see, check")])
    assert found.phrases == {"let me check": 1, "let me": 1, "check": 1}


def test_no_responses_have_no_reflection() -> None:
    assert PhraseCounter().count([]).share == 0.0


@pytest.mark.parametrize("phrases", [[], [""], ["wait", "  "]])
def test_an_empty_phrase_is_refused(phrases: list[str]) -> None:
    with pytest.raises(ValueError, match="must be non-empty texts"):
        PhraseCounter(phrases)


def test_evaluations_are_read_in_the_order_of_their_steps(tmp_path: Path) -> None:
    row = {"prompt": "p", "label": "1", "response": "a\u2028b", "correct": None, "length": 3, "answer": None}
    for step in (10, 9):
        (tmp_path / f"step-{step}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = read_kept_responses(tmp_path)
    assert list(kept) == [9, 10]
    assert kept[9] == [KeptResponse(prompt="p", label="1", text="a\u2028b", correct=None, length=3)]


def test_samples_show_the_first_answer_to_the_first_problems() -> None:
    kept = {
        0: [
            response("guess", correct=False),
            response("other"),
            response("q's", prompt="q"),
            response("r's", prompt="r"),
        ],
        5: [response("wait\nright")],
    }
    text = samples_text("title", kept, PhraseCounter(), problems=2)
    assert "| 0 | 4 | 0.0% |  |  |" in text
    assert "| 5 | 1 | 100.0% | 100.0% | wait 1 |" in text
    assert "Step 0, label 1: wrong, 5 tokens\n\n    p\n    guess\n" in text
    assert "    q\n    q's\n" in text
    assert "    p\n    wait\n    right\n" in text
    assert "other" not in text and "r's" not in text
