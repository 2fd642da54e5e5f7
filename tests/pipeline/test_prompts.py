"""The order in which prompts come."""

from __future__ import annotations

from itertools import islice

import pytest
from fakes import prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.prompts import PromptStream

# ---------------------------------------------------------------- order


def take(stream: PromptStream, count: int) -> list[int]:
    return [given.prompt.id for given in islice(iter(stream.next, None), count)]


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
    taken = [stream.next().prompt for _ in range(4)]
    stream.put_back(taken[2])
    stream.put_back(taken[0])
    assert take(stream, 8) == [reference[2], reference[0], *reference[4:]]


def test_an_empty_prompt_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        PromptStream([], seed=0)


def test_a_run_goes_on_only_with_the_prompts_it_had() -> None:
    state = PromptStream(prompts(5), seed=0, prompt_set="one").state([])
    PromptStream(prompts(5), seed=0, state=state, prompt_set="one")
    with pytest.raises(ConfigError, match="holds 6 prompts, the run to resume had 5"):
        PromptStream(prompts(6), seed=0, state=state, prompt_set="one")
    with pytest.raises(ConfigError, match="holds 5 prompts, but not those of the run to resume"):
        PromptStream(prompts(5), seed=0, state=state, prompt_set="another")
