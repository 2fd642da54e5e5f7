"""Several sets of prompts, each in its share."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from fakes import prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.pipeline.mixture import Drawing
from dapo_openrlhf.pipeline.prompts import PromptState, PromptStream


def drawn(stream: PromptStream, count: int) -> list[int]:
    return [given.prompt.id for given in islice(iter(stream.next, None), count)]


def test_two_sets_by_hand() -> None:
    """Credits after each draw: (-1/4, 1/4), (-1/2, 1/2), (1/4, -1/4), (0, 0); of equal ones the first comes."""
    stream = PromptStream(prompts(5), seed=0, drawing=Drawing(sizes=(3, 2), shares=(0.75, 0.25)))
    assert ["ab"[prompt >= 3] for prompt in drawn(stream, 8)] == list("aabaaaba")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    count=st.integers(1, 300),
)
def test_each_set_has_its_share_at_any_time_and_its_prompts_come_pass_by_pass(
    sizes: list[int], weights: list[float], count: int
) -> None:
    shares = [weight / sum(weights[: len(sizes)]) for weight in weights[: len(sizes)]]
    drawing = Drawing(sizes=tuple(sizes), shares=tuple(shares))
    some = drawn(PromptStream(prompts(sum(sizes)), seed=3, drawing=drawing), count)
    begin = 0
    for size, share in zip(sizes, shares, strict=True):
        own = [prompt for prompt in some if begin <= prompt < begin + size]
        assert abs(len(own) - share * count) < len(sizes)
        for first in range(0, len(own) - size + 1, size):
            assert sorted(own[first : first + size]) == list(range(begin, begin + size))
        begin += size


@pytest.mark.parametrize("before", [0, 1, 7, 100])
def test_a_resumed_run_goes_on_at_its_place_in_each_set_and_may_change_the_shares(before: int) -> None:
    everything = prompts(1003)
    drawing = Drawing(sizes=(1000, 3), shares=(0.8, 0.2))
    stream = PromptStream(everything, seed=5, drawing=drawing)
    drawn(stream, before)
    state = stream.state([])
    assert drawn(PromptStream(everything, seed=5, drawing=drawing, state=state), 50) == drawn(stream, 50)
    other = Drawing(sizes=(1000, 3), shares=(0.5, 0.5))
    again = drawn(PromptStream(everything, seed=5, drawing=other, state=state), 50)
    assert abs(sum(prompt >= 1000 for prompt in again) - 25) <= 2, "from now on, not made up for the past"


def test_a_set_whose_prompts_are_all_dropped_leaves_its_draws_to_the_others() -> None:
    everything = prompts(6)
    stream = PromptStream(everything, seed=5, drawing=Drawing(sizes=(4, 2), shares=(0.5, 0.5)))
    for prompt in everything[4:]:
        stream.drop(prompt, "broken")
    assert Counter(drawn(stream, 8)) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_checkpoint_of_an_earlier_version_goes_on() -> None:
    stream = PromptStream(prompts(10), seed=5)
    drawn(stream, 14)
    old = PromptState(drawn=14, returned=(), prompt_count=10)
    assert drawn(PromptStream(prompts(10), seed=5, state=old), 12) == drawn(stream, 12)
