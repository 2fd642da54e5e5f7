"""Whole runs of the real pipeline over models: times worked out by hand, and never better than the bound."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.plan.bound import bound
from dapo_openrlhf.plan.scenario import EngineSpeed, Sample, Scenario, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.simulation import simulate

EVEN = Work(samples=[Sample(lengths=(100, 100), correct=(True, False))], prompt_tokens=10, reward_seconds=0.1)
"""Every response has 100 tokens, every group is kept."""
PLAIN = Scenario(
    engines=2,
    engine=EngineSpeed(step=0.01),
    trainer=TrainerSpeed(step=1.12, per_token=0.001),  # 4 groups of 2 x (100 + 10) tokens: 2 s
    sync=SyncSpeed(send=0.2, deliver=0.3, pause=0.0),
    work=EVEN,
    batch_size=4,
    max_staleness=0,
    steps=12,
)


def test_a_synchronous_step_is_the_sum_of_its_parts() -> None:
    """1 s of generation, 0.1 s of scoring, 2 s of training, 0.2 s and 0.3 s of the weight sync."""
    predicted = simulate(PLAIN)
    assert predicted.step_seconds == pytest.approx([3.6] * 9)
    assert (predicted.mean_age, predicted.max_age, predicted.waste) == (0.0, 0, 0.0)
    assert predicted.tokens_per_second == pytest.approx(800 / 3.6)
    assert predicted.engines_idle == pytest.approx(1 - 1.0 / 3.6)
    assert predicted.trainer_idle == pytest.approx(1 - 2.0 / 3.6)
    assert bound(PLAIN).step == pytest.approx(3.6)
    assert bound(PLAIN).limit == "round trip"


def test_one_step_off_policy_hides_generation_behind_training() -> None:
    predicted = simulate(PLAIN.at(1))
    assert predicted.step_seconds == pytest.approx([2.2] * 9)
    assert predicted.trainer_idle == pytest.approx(1 - 2.0 / 2.2)
    assert (predicted.mean_age, predicted.max_age) == (1.0, 1)
    assert (bound(PLAIN.at(1)).step, bound(PLAIN.at(1)).limit) == (pytest.approx(2.2), "trainer")


def test_slow_engines_limit_whatever_k_is() -> None:
    """Each engine runs one sequence at a time: 4 x 2 sequences of 1 s on two engines."""
    slow = dataclasses.replace(PLAIN, engine=EngineSpeed(step=0.01, most_sequences=1))
    for max_staleness in (1, 4):
        predicted = simulate(slow.at(max_staleness))
        assert predicted.step == pytest.approx(4.0)
        assert predicted.engines_idle == pytest.approx(0.0, abs=1e-9)
        assert (bound(slow.at(max_staleness)).step, bound(slow.at(max_staleness)).limit) == (4.0, "engines")


def test_dropped_groups_are_generated_for_nothing() -> None:
    half = Work(
        samples=[Sample(lengths=(100, 100), correct=(right, False)) for right in (True, False)],
        prompt_tokens=10,
        reward_seconds=0.1,
    )
    scenario = dataclasses.replace(PLAIN, work=half, batch_size=16, steps=40)
    assert half.pass_rate == 0.5
    predicted = simulate(scenario.at(1))
    assert predicted.waste == pytest.approx(0.5, abs=0.1)
    assert simulate(dataclasses.replace(scenario, filtered=False)).waste == pytest.approx(0.0, abs=1e-9)


def test_runs_repeat() -> None:
    work = Work.drawn(
        groups=50, responses=4, mean=100, spread=1.0, most=1000, pass_rate=0.6, prompt_tokens=10, reward_seconds=0.1
    )
    scenario = dataclasses.replace(PLAIN, work=work, max_staleness=2)
    assert simulate(scenario) == simulate(scenario)
    assert simulate(scenario) != simulate(dataclasses.replace(scenario, seed=1))


def test_drawn_work_has_the_mean_and_the_pass_rate_asked_for() -> None:
    work = Work.drawn(
        groups=4000, responses=4, mean=500, spread=0.8, most=10**6, pass_rate=0.4, prompt_tokens=10, reward_seconds=0.0
    )
    lengths = [length for sample in work.samples for length in sample.lengths]
    mean = sum(lengths) / len(lengths)
    deviation = (sum((length - mean) ** 2 for length in lengths) / len(lengths)) ** 0.5
    assert mean == pytest.approx(500, rel=0.03)
    assert deviation / mean == pytest.approx(0.8, rel=0.05)
    assert work.pass_rate == pytest.approx(0.4, abs=0.03)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Runs in which every response has the same length, so that the bound holds for each step."""
    positive = st.floats(0.01, 3.0)
    length, responses = draw(st.integers(1, 200)), draw(st.integers(2, 4))
    values: dict[str, Any] = {
        "engines": draw(st.integers(1, 3)),
        "engine": EngineSpeed(
            step=draw(st.floats(0.001, 0.02)),
            per_sequence=draw(st.sampled_from([0.0, 0.001])),
            per_context_token=draw(st.sampled_from([0.0, 1e-5])),
            most_sequences=draw(st.sampled_from([1, 4, 100])),
        ),
        "trainer": TrainerSpeed(step=draw(positive), per_token=draw(st.sampled_from([0.0, 1e-4]))),
        "sync": SyncSpeed(send=draw(positive), deliver=draw(positive), pause=0.0),
        "work": Work(
            samples=[Sample(lengths=(length,) * responses, correct=(True,) + (False,) * (responses - 1))],
            prompt_tokens=draw(st.integers(1, 50)),
            reward_seconds=draw(st.floats(0.0, 1.0)),
        ),
        "batch_size": draw(st.integers(1, 6)),
        "max_staleness": draw(st.integers(0, 4)),
    }
    return Scenario(**values)


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(scenarios())
def test_no_schedule_beats_the_bound(scenario: Scenario) -> None:
    """Over whole rounds of K + 1 steps, in which each argument holds on average."""
    predicted = simulate(dataclasses.replace(scenario, steps=8 * (scenario.max_staleness + 1) + 4))
    assert predicted.step >= bound(scenario).step * (1 - 1 / len(predicted.step_seconds)) - 1e-9
    assert predicted.max_age <= scenario.max_staleness
