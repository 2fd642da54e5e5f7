"""What a simulated run was made with is found again in its log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.plan.fit import Material
from dapo_openrlhf.plan.least_squares import least_squares
from dapo_openrlhf.plan.observed import Life, lives
from dapo_openrlhf.plan.run_settings import RunSettings
from dapo_openrlhf.plan.scenario import EngineSpeed, Scenario, Sharing, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.simulation import simulate
from dapo_openrlhf.plan.unknown_lengths import fill_in

WORK = Work.drawn(
    groups=600, responses=8, mean=45, spread=1.2, most=256, pass_rate=0.4, prompt_tokens=12, reward_seconds=0.02
)
RUN = Scenario(
    engines=1,
    engine=EngineSpeed(
        step=4e-3, per_sequence=5e-5, per_context_token=1e-6, per_prompt_token=1e-4, latency=0.01, most_sequences=512
    ),
    trainer=TrainerSpeed(step=0.3, per_token=4e-4),
    sync=SyncSpeed(send=0.01, deliver=0.05, pause=0.02),
    work=WORK,
    batch_size=16,
    max_staleness=1,
    steps=16,
)


def logged(scenario: Scenario, path: Path) -> Life:
    """The life that a simulation wrote to a log."""
    with path.open("w", encoding="utf-8") as file:
        simulate(scenario, file=file)
    (life,) = lives(read(path))
    return life


def material(life: Life, *, shared: bool = False) -> Material:
    return Material(life, dataclasses.replace(RunSettings.of(life, None), shared=shared))


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_a_run_is_fitted_back_to_its_parameters(tmp_path: Path, max_staleness: int) -> None:
    """Trainer, weight sync and scoring exactly; a decode step of 100 sequences, and single parts of it, as stated."""
    fitted = material(logged(RUN.at(max_staleness), tmp_path / "events.jsonl")).fit()
    assert fitted.trainer.step == pytest.approx(0.3, rel=0.02)
    assert fitted.trainer.per_token == pytest.approx(4e-4, rel=0.01)
    assert (fitted.sync.send, fitted.sync.deliver, fitted.sync.pause) == pytest.approx((0.01, 0.05, 0.02), rel=0.01)
    assert fitted.work.reward_seconds == pytest.approx(0.02, rel=0.01)
    assert fitted.work.prompt_tokens == 12
    for sequences, context in ((20, 2000), (100, 8000), (200, 12000)):
        ours, true = (speed.seconds(1, sequences=sequences, context=context) for speed in (fitted.engine, RUN.engine))
        assert ours == pytest.approx(true, rel=0.06)
    assert fitted.engine.per_sequence == pytest.approx(5e-5, rel=0.3)
    assert fitted.engine.per_context_token == pytest.approx(1e-6, rel=0.3)
    assert fitted.work.tokens_per_group == pytest.approx(WORK.tokens_per_group, rel=0.08)
    assert fitted.work.pass_rate == pytest.approx(WORK.pass_rate, abs=0.06)


def test_what_was_fitted_predicts_other_k(tmp_path: Path) -> None:
    """A log of K = 0 gives K = 0, 1, 2 and 4 within 6 % of the step and 0.1 of the mean age, when responses are the same."""
    life = logged(RUN.at(0), tmp_path / "events.jsonl")
    fitted = dataclasses.replace(material(life).fit(), work=WORK)
    for max_staleness in (0, 1, 2, 4):
        true = simulate(RUN.at(max_staleness))
        settings = dataclasses.replace(RunSettings.of(life, None), max_staleness=max_staleness)
        ours = simulate(fitted.scenario(settings, steps=RUN.steps, seed=RUN.seed))
        assert ours.step == pytest.approx(true.step, rel=0.06)
        assert ours.mean_age == pytest.approx(true.mean_age, abs=0.1)


def test_what_sharing_a_machine_costs_is_found_where_a_run_shows_it(tmp_path: Path) -> None:
    """At K = 1 both sides work alone and together by turns; at K = 0 never together, so nothing is said."""
    shared = dataclasses.replace(RUN, sharing=Sharing(engine=0.5, trainer=0.3), steps=24)
    fitted = material(logged(shared.at(1), tmp_path / "one.jsonl"), shared=True).fit()
    assert fitted.sharing.engine == pytest.approx(0.5, abs=0.11)
    assert fitted.sharing.trainer == pytest.approx(0.3, abs=0.11)
    alone = material(logged(shared.at(0), tmp_path / "none.jsonl"), shared=True).fit()
    assert alone.sharing == Sharing()


def test_sharing_slows_both_sides_down() -> None:
    """Training of 3 s beside 2 s of decoding at half speed: 2 s of it alone would do, so 1 s is left when decoding ends."""
    even = Work(samples=WORK.samples[:1], prompt_tokens=1, reward_seconds=0.0)
    base = dataclasses.replace(RUN, work=even, filtered=False, batch_size=2)
    alone, shared = (
        simulate(dataclasses.replace(base, sharing=sharing)) for sharing in (Sharing(), Sharing(trainer=1.0))
    )
    assert alone.step < shared.step < 2 * alone.step
    slow = simulate(dataclasses.replace(base, sharing=Sharing(engine=1.0)))
    assert slow.step > alone.step


def test_groups_that_were_stopped_count_as_long_ones(tmp_path: Path) -> None:
    """Over-sampling stops those that run longest; leaving them out would make responses too short."""
    many = dataclasses.replace(RUN, over_sampling=4.0, steps=24).at(0)
    life = logged(many, tmp_path / "events.jsonl")
    found = material(life)
    known = [group.longest for group in found.groups]
    counted = [max(sample.lengths) for sample in found.fit().work.samples]
    assert len(life.given_up) > 50
    assert sum(counted) / len(counted) > 1.03 * sum(known) / len(known)


def test_lengths_that_an_old_log_lacks_are_spread_so_that_the_longest_is_right(tmp_path: Path) -> None:
    life = logged(RUN, tmp_path / "events.jsonl")
    assert fill_in(life) is None
    for group in life.groups.values():
        group.lengths, group.prompt_tokens = (), 0
    said = fill_in(life)
    assert said is not None and "without the length of each response" in said
    longest = [step.batch.longest_response for step in life.steps]
    made = [max(life.groups[number].longest for number in step.batch.groups) for step in life.steps]
    assert sum(made) / len(made) == pytest.approx(sum(longest) / len(longest), rel=0.2)
    assert material(life).fit().work.prompt_tokens == 1


def test_no_coefficient_is_negative() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    ones = np.ones(3)
    assert least_squares(columns, np.array([3.0, 5.0, 7.0]), ones) == pytest.approx([1.0, 2.0])
    assert least_squares(columns, np.array([3.0, 2.0, 1.0]), ones) == pytest.approx([2.0, 0.0])
    assert least_squares(columns, np.array([-1.0, -2.0, -3.0]), ones) == pytest.approx([0.0, 0.0])
    twice = np.array([[1.0, 2.0], [2.0, 4.0]])
    assert twice @ least_squares(twice, np.array([2.0, 4.0]), np.ones(2)) == pytest.approx([2.0, 4.0])
