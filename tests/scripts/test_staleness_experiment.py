"""The staleness study: its arms are configurations of their own, dropping by age keeps the bound, results read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.staleness import StalenessPolicy, StalenessViolation, Waiting
from dapo_openrlhf.plan import simulation
from dapo_openrlhf.plan.scenario import EngineSpeed, Scenario, SyncSpeed, TrainerSpeed, Work
from scripts.experiments.staleness.__main__ import report
from scripts.experiments.staleness.arms import ARMS, choose_arms
from scripts.experiments.staleness.dropping import DroppingPolicy
from scripts.experiments.staleness.outcome import Outcome, Point, read_outcome, read_outcomes
from scripts.experiments.staleness.runs import plan
from scripts.experiments.staleness.table import table_text

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml"
OUTCOME = Outcome(
    arm="k0",
    seed=1,
    points=(
        Point(step=0, tokens=0, seconds=0.0, accuracy=0.4),
        Point(step=10, tokens=1000, seconds=20.0, accuracy=0.6),
        Point(step=20, tokens=3000, seconds=30.0, accuracy=0.8),
    ),
    mean_age=0.0,
    oldest=0,
    dispatched=200,
    thrown_away=10,
    thrown_away_tokens=50,
    cut_share=0.0,
    trained_length=9.5,
    generated_length=10.0,
    foreign_load=0.25,
)


def test_every_arm_is_a_configuration_of_its_own(tmp_path: Path) -> None:
    runs = plan(ARMS, seeds=[1, 2], config_file=CONFIG, output=tmp_path, overrides={"train.max_steps": 2})
    first = [run for run in runs if run.trial.seed == 1]
    told = {(str(run.trial.config().model_dump(exclude={"run"})), run.arm.module) for run in first}
    assert len(told) == len(first) == len(ARMS)
    assert len({run.trial.run.path for run in runs}) == 2 * len(ARMS)
    assert {run.trial.config().train.max_steps for run in runs} == {2}
    with pytest.raises(ConfigError, match="--arms k3: there is no such arm; there are k0, k1"):
        choose_arms(["k3"])


SCENARIO = Scenario(
    engines=2,
    engine=EngineSpeed(step=0.01),
    trainer=TrainerSpeed(step=0.5, per_token=0.0),
    sync=SyncSpeed(send=0.01, deliver=0.01, pause=0.0),
    work=Work.drawn(
        groups=200, responses=2, mean=200, spread=2.0, most=2000, pass_rate=0.7, prompt_tokens=5, reward_seconds=0.1
    ),
    batch_size=8,
    max_staleness=2,
    steps=30,
)


@pytest.mark.parametrize(("max_staleness", "over_sampling"), [(0, 1.0), (0, 3.0), (1, 1.0), (2, None), (4, 2.0)])
def test_dropping_by_age_keeps_the_bound_and_throws_away(max_staleness: int, over_sampling: float | None) -> None:
    scenario = replace(SCENARIO.at(max_staleness), over_sampling=over_sampling)
    lines: list[str] = []
    log = mock.Mock(write=lines.append)
    with mock.patch.object(simulation, "StalenessPolicy", DroppingPolicy):
        found = simulation.simulate(scenario, file=log)
    events = [json.loads(line) for line in lines]
    ages = [age for event in events if event["event"] == "batch_taken" for age in event["ages"]]
    assert len(ages) == 30 * 8
    assert max(ages) <= max_staleness
    dropped = sum(event["event"] == "group_surplus" for event in events)
    assert dropped > 0 if max_staleness in (1, 2) else dropped >= 0
    assert found.max_age <= max_staleness


def test_groups_are_taken_in_the_order_of_their_ends() -> None:
    policy = DroppingPolicy(batch_size=2, max_staleness=1)
    for group in range(4):
        policy.dispatch(group)
    policy.keep(3)
    assert isinstance(policy.select(), Waiting)
    policy.keep(1)
    policy.keep(0)
    assert policy.select() == (3, 1)
    assert policy.surplus() == ()
    policy.trainer_version = policy.trainer_version.__class__(2)  # two steps later all are too old
    assert policy.surplus() == (0, 1, 2, 3)
    assert not policy.available
    assert policy.ready == 0


def test_the_pipelines_own_policy_would_not_take_them() -> None:
    """So that the experiment measures something that this program does not do."""
    own = StalenessPolicy(batch_size=2, max_staleness=0)
    for group in range(2):
        own.dispatch(group)
    own.keep(1)
    with pytest.raises(StalenessViolation):
        own.take([mock.Mock(id=1, oldest_version=0)])


def test_accuracy_between_evaluations() -> None:
    assert OUTCOME.accuracy_at("step", 5) == pytest.approx(0.5)
    assert OUTCOME.accuracy_at("tokens", 2000) == pytest.approx(0.7)
    assert OUTCOME.accuracy_at("seconds", 30.0) == pytest.approx(0.8)
    assert OUTCOME.accuracy_at("seconds", 99.0) == pytest.approx(0.8)
    assert Outcome.from_json(OUTCOME.to_json()) == OUTCOME


def test_the_table_compares_at_what_all_runs_reached(tmp_path: Path) -> None:
    short = replace(OUTCOME, arm="k4", seed=1, points=OUTCOME.points[:2], mean_age=3.0, oldest=4, foreign_load=None)
    table = table_text([OUTCOME, replace(OUTCOME, seed=2), short])
    k0, k4 = (line for line in table.splitlines() if line.startswith("| K ="))
    assert k0.startswith(
        "| K = 0 | 2 | 60.0 ± 0.0 | 60.0 ± 0.0 | 60.0 ± 0.0 | 1.50 | 0.00 | 0 | 5.0 % | 0.0 % | 9.5 / 10.0"
    )
    assert k0.endswith("| 25 % |")
    assert k4.startswith("| K = 4 | 1 | 60.0 | 60.0 | 60.0 | 2.00 | 3.00 | 4 |")
    assert k4.endswith("| not noted |")
    assert "after 10 steps, 1,000 response tokens generated, and 20 s" in table


def test_the_report_is_written_from_results_alone(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text(OUTCOME.to_json() + "\n")
    assert report(read_outcomes(results), tmp_path / "out") == 0
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 10_000
    assert "| K = 0 |" in (tmp_path / "out" / "table.md").read_text()
    assert report([], tmp_path / "out") == 1


def test_an_outcome_is_read_from_the_log_of_a_run(tmp_path: Path) -> None:
    (run,) = plan(choose_arms(["k2"]), seeds=[3], config_file=CONFIG, output=tmp_path, overrides={})
    run.trial.run.path.mkdir(parents=True)
    with run.trial.run.events.open("w") as log:
        simulation.simulate(SCENARIO, file=log)
        for step, accuracy in ((0, 0.25), (30, 0.75)):
            log.write(
                json.dumps({
                    "time": 1.0, "event": "evaluated", "step": step, "version": step, "accuracy": accuracy, "problems": 4,
                    "responses": 4, "seconds": 0.1,
                })
                + "\n"
            )  # fmt: skip
    run.load_file.write_text('{"foreign_load": 0.5}')
    found = read_outcome(run)
    assert [(point.step, point.accuracy) for point in found.points] == [(0, 0.25), (30, 0.75)]
    assert found.points[0].tokens == 0
    assert found.points[1].tokens > 0
    assert found.points[1].seconds > 30 * 0.5  # what thirty steps of training take at least
    assert 0 < found.mean_age <= 2
    assert (found.arm, found.seed, found.foreign_load) == ("k2", 3, 0.5)
    assert found.dispatched > found.thrown_away  # over-sampling of this filter makes some in vain
