"""Soft overlong punishment, DAPO eq. 13: L_max = 20480, L_cache = 4096 as in the paper unless said otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapo_openrlhf.algorithm.overlong import soft_overlong_punishment


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, 0.0),
        (16383, 0.0),
        (16384, 0.0),  # L_max - L_cache: the last length without punishment
        (16385, -1 / 4096),  # (16384 - 16385) / 4096
        (17408, -0.25),  # (16384 - 17408) / 4096 = -1024 / 4096
        (18432, -0.5),  # the middle: -2048 / 4096
        (20479, -4095 / 4096),
        (20480, -1.0),  # L_max: -4096 / 4096
        (20481, -1.0),  # beyond: flat
        (99999, -1.0),
    ],
)
def test_paper_numbers(length: int, expected: float) -> None:
    assert soft_overlong_punishment(length, max_length=20480, buffer_length=4096, factor=1.0) == expected


@pytest.mark.parametrize(("length", "expected"), [(6, 0.0), (7, -0.125), (8, -0.25), (10, -0.5), (11, -0.5)])
def test_factor_scales_the_whole_punishment(length: int, expected: float) -> None:
    # L_max = 10, L_cache = 4: punished are 7 .. 10 with -1/4, -2/4, -3/4, -1, each times 0.5.
    assert soft_overlong_punishment(length, max_length=10, buffer_length=4, factor=0.5) == expected


def test_buffer_of_zero_switches_it_off() -> None:
    assert soft_overlong_punishment(10, max_length=10, buffer_length=0, factor=1.0) == 0.0
    assert soft_overlong_punishment(99, max_length=10, buffer_length=0, factor=1.0) == 0.0


def test_buffer_of_the_whole_length() -> None:
    # L_cache = L_max = 10: punished from the first token on, -1/10 a token.
    assert soft_overlong_punishment(1, max_length=10, buffer_length=10, factor=1.0) == -0.1
    assert soft_overlong_punishment(10, max_length=10, buffer_length=10, factor=1.0) == -1.0


@pytest.mark.parametrize("buffer_length", [-1, 11])
def test_impossible_buffer_is_refused(buffer_length: int) -> None:
    with pytest.raises(ValueError, match=f"got {buffer_length} and 10"):
        soft_overlong_punishment(5, max_length=10, buffer_length=buffer_length, factor=1.0)


@given(st.integers(1, 60), st.integers(1, 40), st.data())
def test_never_rises_with_length_and_stays_in_range(length: int, max_length: int, data: st.DataObject) -> None:
    buffer_length = data.draw(st.integers(0, max_length))
    shorter, longer = (
        soft_overlong_punishment(tokens, max_length=max_length, buffer_length=buffer_length, factor=1.0)
        for tokens in (length, length + 1)
    )
    assert -1 <= longer <= shorter <= 0
