"""Values as one would type them."""

from __future__ import annotations

import pytest

from dapo_openrlhf.config.loading import parse_overrides
from dapo_openrlhf.config.typed import typed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (2.0, "2"),
        (1e-6, "1e-06"),
        (0.28, "0.28"),
        (0.1234567891, "0.1234567891"),
        (20260101.0, "20260101.0"),
        ((0.2, 0.28), "0.2 0.28"),
        (["rule", "mine.py"], "rule mine.py"),
        ("auto", "auto"),
    ],
)
def test_values_are_read_back_as_they_are_typed(value: object, text: str) -> None:
    assert typed(value) == text
    words = text.split(" ") if isinstance(value, list | tuple) else [text]
    read = parse_overrides(["--a.b", *words])["a.b"]
    assert read == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("value", [1e6, 1e16, 3e-9, 123456.0])
def test_large_and_small_numbers_stay_numbers(value: float) -> None:
    assert parse_overrides(["--a.b", typed(value)])["a.b"] == value


def test_a_mapping_is_json() -> None:
    assert typed({"enable_thinking": False}) == '{"enable_thinking": false}'
