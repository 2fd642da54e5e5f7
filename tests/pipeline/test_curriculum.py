"""Prompts by difficulty: what is learned of them, which are drawn, and that none starves."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, deque
from dataclasses import asdict, replace

import pytest
from fakes import FakeEngine, FakeGroup, FakeScorer, build, prompts, some_group
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.curriculum import AGAIN, NEW, TURN, Curriculum, Difficulty, Memory, classes
from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter
from dapo_openrlhf.pipeline.events import BatchTaken, GroupDispatched, GroupJudged
from dapo_openrlhf.pipeline.mixture import Drawing
from dapo_openrlhf.pipeline.orders import IN_TURN
from dapo_openrlhf.pipeline.pass_rates import Known, PassRates, Rates
from dapo_openrlhf.pipeline.prompts import RETURNED, PromptState, PromptStream
from dapo_openrlhf.plan.virtual_time import run_virtual

# ---------------------------------------------------------------- what is learned


def test_pass_rates_by_hand() -> None:
    """Two outcomes of 8 responses. An offset from 8 responses counts 8 / (8 + 16) = 1/3, from 16 a half."""
    rates = PassRates(responses=8, half_life=math.inf, state=Rates())
    rates.learn(0, 0.5, 8)  # logit log(4.5 / 4.5) = 0: the level is 0, and so is the offset
    rates.learn(1, 1.0, 8)  # logit log(8.5 / 0.5) = log 17: the level becomes half of it, the offset the other half
    half = math.log(17) / 2
    state = rates.state()
    assert (state.level, state.mixed, state.outcomes) == (pytest.approx(half), 0.5, 2)
    assert state.known == {0: Known(0.0, 8, 1), 1: Known(pytest.approx(half), 8, 2)}

    def both(logit: float) -> float:
        p = 1 / (1 + math.exp(-logit))
        return 1 - p**8 - (1 - p) ** 8

    assert rates.chance(2) == pytest.approx(0.5), "of an unknown prompt: the share that was mixed"
    assert rates.chance(1) == pytest.approx(0.5 * both(half + half / 3) / both(half))
    assert rates.chance(1) < rates.chance(2)


def test_an_outcome_counts_for_less_with_every_other_one() -> None:
    rates = PassRates(responses=4, half_life=3, state=Rates(level=0.0, outcomes=100, known={7: Known(-2.0, 16, 100)}))
    first = rates._remembered(7)
    for other in range(3):
        rates.learn(other, 0.5, 4)
    assert (first, rates._remembered(7)) == ((-2.0, 16.0), (-2.0, 8.0))


def test_the_level_follows_a_policy_that_learns() -> None:
    """A prompt that was half right when all were is promising no longer once the others are all right."""
    rates = PassRates(responses=8, half_life=1000, state=Rates())
    rates.learn(0, 0.5, 8)
    for other in range(1, 40):
        rates.learn(other, 0.5, 8)
    early = rates.chance(0)
    for other in range(40, 200):
        rates.learn(other, 1.0, 8)
    assert early > 0.99 and rates.chance(0) < 0.05


def test_a_range_of_scores_is_a_pass_rate_too() -> None:
    group = some_group(0, right=(True, True, False, False))
    assert GroupFilter(enabled=True).pass_rate(group) == 0.5
    scored = replace(
        group, rollouts=tuple(replace(r, score=s) for r, s in zip(group.rollouts, (3, 4, 5, 6), strict=True))
    )
    assert GroupFilter(enabled=True, score_range=(4, 5)).pass_rate(scored) == 0.5
    assert GroupFilter(enabled=True, score_range=(5, 6)).pass_rate(scored) == 0.0
    assert GroupFilter(enabled=True, score_range=(1, 2)).pass_rate(scored) == 1.0


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([5], [0]), ([3, 3, 3], [0, 0, 0]), ([10, 8, 12, 8], [1, 0, 2, 0]), (range(16), [n // 2 for n in range(16)])],
)
def test_lengths_fall_into_classes(lengths: list[int], expected: list[int]) -> None:
    assert classes(lengths) == expected


# ---------------------------------------------------------------- which are drawn


def curriculum(count: int, *, batch_size: int = 1, responses: int = 8, memory: Memory | None = None) -> Curriculum:
    lengths = [prompt % 3 for prompt in range(count)]
    return Curriculum(Difficulty(batch_size=batch_size, responses=responses, lengths=lengths), seed="7", memory=memory)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 60), seed=st.integers(0, 1000), delay=st.integers(0, 40), failing=st.sampled_from([0.0, 0.5])
)
def test_each_prompt_is_among_any_four_draws_for_each_prompt(count: int, seed: int, delay: int, failing: float) -> None:
    """Whatever the outcomes, however late they come, and if half of them never do."""
    chance, order = random.Random(seed), curriculum(count)
    under_way: deque[int] = deque()
    last = dict.fromkeys(range(count), 0)
    for number in range(1, 12 * count + 1):
        prompt = order.next().prompt
        assert number - last[prompt] <= TURN * count
        last[prompt] = number
        under_way.append(prompt)
        if len(under_way) > delay and chance.random() >= failing:
            order.learn(under_way.popleft(), chance.choice([0.0, 0.0, 0.5, 1.0]), 8)
    assert all(number - at <= TURN * count for at in last.values())


def test_solved_and_hopeless_prompts_rest() -> None:
    """A third each is solved, hopeless and mixed. All are drawn once; from then on most draws are mixed ones."""
    order = curriculum(120, batch_size=16)
    kinds = {prompt: ("solved", "hopeless", "mixed")[prompt // 3 % 3] for prompt in range(120)}
    rates = {"solved": 1.0, "hopeless": 0.0, "mixed": 0.5}
    drawn: list[tuple[int, str]] = []
    for _ in range(1200):
        draw = order.next()
        order.learn(draw.prompt, rates[kinds[draw.prompt]], 8)
        drawn.append(draw)
    assert {prompt for prompt, _ in drawn} == set(range(120))
    late = Counter(kinds[prompt] for prompt, _ in drawn[600:])
    assert late["mixed"] > 0.65 * 600 and min(late.values()) >= 600 / TURN / 3 - 1
    assert Counter(reason for _, reason in drawn[600:])[IN_TURN] >= 600 / TURN


def test_new_prompts_come_from_the_promising_length() -> None:
    """Prompts of length 2 are half right, those of 0 and 1 solved."""
    order = curriculum(900)
    reasons = Counter[tuple[str, int]]()
    for number in range(200):
        draw = order.next()
        order.learn(draw.prompt, 0.5 if draw.prompt % 3 == 2 else 1.0, 8)
        if number >= 100:
            reasons[draw.reason, draw.prompt % 3] += 1
    assert reasons[NEW, 0] == reasons[NEW, 1] == 0 and reasons[NEW, 2] + reasons[AGAIN, 2] + reasons[IN_TURN, 2] >= 75


def test_a_prompt_rests_after_a_draw_and_a_dropped_one_is_avoided() -> None:
    order = curriculum(40, batch_size=16)
    last: dict[int, int] = {}
    order.drop(5)
    for number in range(400):
        draw = order.next()
        order.learn(draw.prompt, 0.5, 8)
        if draw.reason == AGAIN:
            assert number - last[draw.prompt] > 10 and draw.prompt != 5
        last[draw.prompt] = number


# ---------------------------------------------------------------- going on


@settings(max_examples=40, deadline=None, derandomize=True)
@given(count=st.integers(1, 50), before=st.integers(0, 150), seed=st.integers(0, 1000))
def test_a_resumed_run_draws_as_if_it_had_not_stopped(count: int, before: int, seed: int) -> None:
    """Prompts under way come first; from then on both draw the same, given the same outcomes."""
    chance = random.Random(seed)
    drawing = Drawing(
        sizes=(count, 7),
        shares=(0.75, 0.25),
        difficulty=Difficulty(batch_size=1, responses=4, lengths=[n % 4 for n in range(count + 7)]),
    )
    everything = prompts(count + 7)
    stream = PromptStream(everything, seed=seed, drawing=drawing)
    under_way = []
    for _ in range(before):
        under_way.append(stream.next().prompt)
        if chance.random() < 0.8:
            stream.learn(under_way.pop(chance.randrange(len(under_way))), chance.choice([0.0, 0.25, 1.0]), 4)
    if count > 3:
        stream.drop(everything[2], "broken")
    state = PromptState.read(json.loads(json.dumps(asdict(stream.state(under_way)))))
    assert state == stream.state(under_way)
    resumed = PromptStream(everything, seed=seed, drawing=drawing, state=state)
    for prompt in under_way:
        if prompt.id != 2 or count <= 3:
            assert resumed.next() == (prompt, RETURNED)
    for _ in range(3 * count):
        expected = stream.next()
        assert resumed.next() == expected
        rate = chance.choice([0.0, 0.5, 1.0])
        stream.learn(expected.prompt, rate, 4)
        resumed.learn(expected.prompt, rate, 4)


def test_another_set_of_prompts_is_refused_with_its_size() -> None:
    drawing = Drawing(difficulty=Difficulty(batch_size=1, responses=2, lengths=[1] * 5))
    state = PromptStream(prompts(5), seed=0, drawing=drawing, prompt_set="one").state([])
    with pytest.raises(ConfigError, match="holds 5 prompts, but not those of the run to resume"):
        PromptStream(prompts(5), seed=0, drawing=drawing, state=state, prompt_set="other")


# ---------------------------------------------------------------- in a run


def test_failed_groups_and_cut_responses_teach_nothing() -> None:
    """A group that fails is no pass rate of 0; of one with a cut response the others count."""

    async def main() -> dict[int, Known]:
        difficulty = Difficulty(batch_size=1, responses=4, lengths=[1] * 9)
        world = build(prompt_count=9, drawing=Drawing(difficulty=difficulty), samples=4)
        group = some_group(4, right=(True, False, False, False))
        cut = tuple(replace(rollout, cut=index >= 2) for index, rollout in enumerate(group.rollouts))
        world.rollouts._learn(replace(group, rollouts=cut))
        world.rollouts._learn(replace(group, rollouts=tuple(replace(rollout, cut=True) for rollout in cut)))
        (one,) = world.rollouts.prompt_state().sets
        assert one.memory is not None
        return one.memory.rates[0].known

    assert run_virtual(main()) == {4: Known(0.0, 2, 1)}


def test_a_run_spends_its_engines_on_prompts_that_teach() -> None:
    """A quarter of the prompts is mixed, the others are solved. In turn a quarter of the groups is kept."""

    def share(drawing: Drawing) -> tuple[float, set[str]]:
        async def main() -> tuple[float, set[str]]:
            def pattern(group: FakeGroup) -> list[bool]:
                return [True, group.prompt.id % 4 != 0, True, True]

            world = build(
                batch_size=4, steps=40, samples=4, prompt_count=200, drawing=drawing, over_sampling=None,
                engines=[FakeEngine(samples=4)], scorer=FakeScorer(pattern=pattern), max_filtered_batches=1000,
            )  # fmt: skip
            await world.run()
            assert max(age for _, event in world.of(BatchTaken) for age in event.ages) <= 1
            late = [event.keep for _, event in world.of(GroupJudged)][-80:]
            return sum(late) / len(late), {event.reason for _, event in world.of(GroupDispatched)}

        return run_virtual(main())

    plain, reasons = share(Drawing())
    assert plain < 0.4 and reasons <= {IN_TURN, RETURNED}
    lengths = [1] * 200
    chosen, reasons = share(Drawing(difficulty=Difficulty(batch_size=4, responses=4, lengths=lengths)))
    assert chosen > 0.6 and AGAIN in reasons
