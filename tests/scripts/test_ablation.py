"""The ladder of the paper's Table 1: what a rung is, what is run again, what is read, written and drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from event_files import evaluated, group_judged, run_started, write_events
from patience import HANG_SECONDS

import dapo_openrlhf
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config, parse_overrides
from dapo_openrlhf.pipeline.events import StepDone
from dapo_openrlhf.report.reflection import PhraseCounter
from scripts.experiments.ablation.ladder import (
    CLIP_HIGHER,
    DYNAMIC_SAMPLING,
    NAIVE,
    OVERLONG_FILTERING,
    RUNGS,
    choose_rungs,
    switched_off,
)
from scripts.experiments.ablation.measurement import Measurement, read_trial
from scripts.experiments.ablation.report import write_report
from scripts.experiments.ablation.result import Result, Spread, read_ladder
from scripts.experiments.ablation.table import table_numbers, table_text
from scripts.experiments.ablation.trials import Trial, plan_trials, run_trials

ROOT = Path(dapo_openrlhf.__file__).resolve().parent.parent
SMALL = ROOT / "configs" / "ablation_cpu.yaml"
PAPER = ROOT / "configs" / "dapo_paper_qwen2.5_32b.yaml"


# ------------------------------------------------------------------------------------------------ rungs


@pytest.mark.parametrize("config_file", [SMALL, PAPER], ids=lambda path: path.stem)
def test_each_rung_switches_one_technique_more_on(config_file: Path) -> None:
    config = load_config(config_file)
    offs = [switched_off(rung, config) for rung in RUNGS]
    assert [list(off) for off in offs] == [[rung.key for rung in RUNGS[i + 1 :]] for i in range(len(RUNGS))]
    assert offs[-1] == {}
    assert offs[0] == {
        "reward.overlong_filtering_enable": False,
        "actor.eps_clip_low_high": [0.2, 0.2],
        "reward.overlong_buffer_len": None,
        "actor.loss_agg_mode": "seq-mean-token-mean",
        "algo.dynamic_filtering_enable": False,
    }
    for off in offs:
        load_config(config_file, off)  # every rung can be run


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward.overlong_buffer_len", None),
        ("reward.overlong_buffer_len", 0),
        ("actor.eps_clip_low_high", [0.3, 0.3]),
        ("algo.dynamic_filtering_enable", False),
    ],
)
def test_a_configuration_without_a_technique_is_no_last_rung(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: .* with every technique on"):
        switched_off(NAIVE, load_config(SMALL, {key: value}))


def test_rungs_come_in_the_ladders_order_and_a_wrong_name_is_refused() -> None:
    assert choose_rungs(["dynamic-sampling", "naive-grpo"]) == (NAIVE, DYNAMIC_SAMPLING)
    assert choose_rungs([]) == RUNGS
    with pytest.raises(ConfigError, match="--rungs naive: there is no such rung; there are naive-grpo, "):
        choose_rungs(["naive"])


def test_the_papers_scores() -> None:
    assert [rung.paper for rung in RUNGS] == [30, 36, 38, 41, 42, 50]


# ------------------------------------------------------------------------------------------------ trials


class FakeTrainer:
    """Leaves what a run leaves, or fails as told; knows which runs it was asked for."""

    def __init__(self, *, failing: Sequence[str] = ()) -> None:
        self.failing = failing
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        command, source, place, *rest = arguments
        assert command == "train"
        log.write_text("what was printed\n")
        if source == "--resume":
            run = Path(place)
            self.asked.append(("resume", run.parent.name, run.name))
        else:
            config = load_config(Path(place), parse_overrides(rest))
            run = Path(config.run.dir) / config.run.name
            self.asked.append(("new", run.parent.name, run.name))
            run.mkdir(parents=True)  # fails if the unfinished one is still there
            (run / "config.yaml").write_text(Path(place).read_text())
            _write_config(run, Path(place), parse_overrides(rest))
        if run.parent.name in self.failing:
            return 1
        make_run(run, final=0.5)
        return 0


def _write_config(run: Path, config_file: Path, overrides: dict[str, object]) -> None:
    from dapo_openrlhf.config.loading import dump_config

    (run / "config.yaml").write_text(dump_config(load_config(config_file, overrides)))


def make_run(run: Path, *, final: float, base: float = 0.25) -> None:
    """Two steps: of the four groups judged in the first, one all right; of the two in the second, both."""
    run.mkdir(parents=True, exist_ok=True)
    row = {
        "tokens_per_second/generated": 100.0,
        "seconds/step": 2.0,
        "entropy": 0.5,
        "reward": 0.1,
        "response_length/mean": 9.0,
        "token_probability": 0.8,
    }
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in (0, 1)))
    judged = [0.5, 1.0, 0.0, 0.875]
    events = [
        run_started(1000.0),
        *(group_judged(accuracy=accuracy) for accuracy in judged),
        evaluated(0, base),
        StepDone(step=0, laps={}),
        *(group_judged(accuracy=1.0) for _ in range(2)),
        StepDone(step=1, laps={}),
        evaluated(2, final),
    ]
    write_events(run / "events.jsonl", ((0.0, event) for event in events))
    (run / "eval").mkdir(exist_ok=True)
    response = {"prompt": "1+1=", "label": "2", "response": "Wait, 2", "correct": True, "length": 3}
    for step in (0, 2):
        (run / "eval" / f"step-{step}.jsonl").write_text(json.dumps(response) + "\n")
    (run / "summary.json").write_text(json.dumps({"generated_tokens": 400, "train_seconds": 4.0}))


def plan(output: Path, *, rungs: Sequence[str] = ("naive-grpo", "clip-higher"), steps: int = 2) -> list[Trial]:
    return plan_trials(
        rungs=choose_rungs(rungs),
        seeds=[1, 2],
        config_file=SMALL,
        output=output,
        overrides={"train.max_steps": steps},
    )


def ignore(text: str) -> None:
    """Nobody listens."""


def test_what_is_finished_is_not_run_again_and_a_failure_stops_nobody(tmp_path: Path) -> None:
    broken = FakeTrainer(failing=["naive-grpo"])
    failed = run_trials(plan(tmp_path), start=broken, say=ignore)
    assert broken.asked == [
        ("new", "naive-grpo", "seed-1"),
        ("new", "clip-higher", "seed-1"),
        ("new", "naive-grpo", "seed-2"),
        ("new", "clip-higher", "seed-2"),
    ]
    assert [(trial.rung, trial.seed) for trial in failed] == [(NAIVE, 1), (NAIVE, 2)]
    mended = FakeTrainer()
    assert run_trials(plan(tmp_path), start=mended, say=ignore) == []
    assert mended.asked == [("new", "naive-grpo", "seed-1"), ("new", "naive-grpo", "seed-2")]
    assert run_trials(plan(tmp_path), start=FakeTrainer(failing=["naive-grpo"]), say=ignore) == []


def test_a_run_with_a_checkpoint_is_resumed(tmp_path: Path) -> None:
    run_trials(plan(tmp_path), start=FakeTrainer(failing=["naive-grpo"]), say=ignore)
    checkpoint = tmp_path / "naive-grpo" / "seed-1" / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run_state.json").write_text("{}")
    trainer = FakeTrainer()
    run_trials(plan(tmp_path), start=trainer, say=ignore)
    assert trainer.asked == [("resume", "naive-grpo", "seed-1"), ("new", "naive-grpo", "seed-2")]


def test_a_run_that_ends_well_without_a_summary_has_failed(tmp_path: Path) -> None:
    failed = run_trials(plan(tmp_path), start=lambda arguments, log: 0, say=ignore)
    assert len(failed) == 4


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    run_trials(plan(tmp_path), start=FakeTrainer(), say=ignore)
    with pytest.raises(ConfigError, match=r"seed-1 was begun with other settings \(train.max_steps 2 instead of 3\)"):
        plan(tmp_path, steps=3)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "naive-grpo" / "seed-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"seed-1 is no run of a ladder"):
        plan(tmp_path)


# ------------------------------------------------------------------------------------------------ results


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    run_trials(plan(tmp_path), start=FakeTrainer(), say=ignore)
    first = read_ladder(plan(tmp_path))[0].trials[0]
    assert first.accuracies == {0: 0.25, 2: 0.5}
    assert first.all_right == {1: 0.25, 2: 1.0}
    assert (first.final, first.average) == (0.5, 0.5)
    assert first.curve("entropy") == [(1.0, 0.5), (2.0, 0.5)]
    assert first.curve("unknown") == []
    assert first.accuracy_by_tokens() == [(0.0, 0.25), (400.0, 0.5)]


def test_steps_that_a_resumed_run_does_anew_count_once(tmp_path: Path) -> None:
    trial = plan(tmp_path)[0]
    make_run(trial.run.path, final=0.5)
    more = [
        group_judged(accuracy=0.5),  # lost with the process
        run_started(2000.0),
        group_judged(accuracy=0.5),
        group_judged(accuracy=1.0),
        StepDone(step=1, laps={}),
        evaluated(2, 0.75),
    ]
    write_events(trial.run.events, ((0.0, event) for event in more))
    result = read_trial(trial.run, seed=1)
    assert result.all_right == {1: 0.25, 2: 0.5}
    assert result.final == 0.75


def trial_result(seed: int, final: float) -> Measurement:
    return Measurement(
        seed=seed,
        rows=[],
        accuracies={0: 0.3, 10: 0.4, 20: final},
        all_right={},
        generated_tokens=2000,
        train_seconds=1,
    )


NAIVE_RESULT = Result(rung=NAIVE, trials=[trial_result(1, 0.50), trial_result(2, 0.60)])
FILTERED_RESULT = Result(rung=OVERLONG_FILTERING, trials=[trial_result(1, 0.56), trial_result(2, 0.64)])


def test_gains_are_paired_by_seed() -> None:
    # 0.56 - 0.50 = 0.06 and 0.64 - 0.60 = 0.04: mean 0.05, deviation sqrt(2 x 0.01^2 / 1) = 0.01 x sqrt 2
    gain = FILTERED_RESULT.gain_over(NAIVE_RESULT)
    assert gain is not None
    assert (gain.mean, gain.deviation, gain.count) == (pytest.approx(0.05), pytest.approx(0.01 * 2**0.5), 2)
    assert FILTERED_RESULT.gain_over(Result(rung=NAIVE, trials=[trial_result(3, 0.1)])) is None


def test_the_table_stands_beside_the_papers() -> None:
    # mean 55.0, deviation 10 / sqrt 2 = 7.1; average (40 + 50) / 2 and (40 + 60) / 2: 47.5 ± 3.5
    lines = table_text([NAIVE_RESULT, FILTERED_RESULT]).splitlines()
    assert lines[2] == "| DeepSeek-R1-Zero-Qwen-32B | 47 | | | | | |"
    assert lines[3] == "| naive GRPO | 30 | 55.0 ± 7.1 |  | 47.5 ± 3.5 | 2 | 2 |"
    assert lines[4] == "| + overlong filtering | 36 | 60.0 ± 5.7 | +5.0 ± 1.4 | 50.0 ± 2.8 | 2 | 2 |"
    assert "The base model: 30.0 ± 0.0 % right" in lines[-1]


def test_a_single_seed_has_no_spread() -> None:
    single = Result(rung=NAIVE, trials=[trial_result(1, 0.5)])
    assert "| naive GRPO | 30 | 50.0 |  | 45.0 | 2 | 1 |" in table_text([single])
    assert table_numbers([single])[0]["final_deviation"] is None
    assert Spread.of([0.5]).count == 1


# ------------------------------------------------------------------------------------------------ report


def test_the_report_leaves_table_samples_and_every_figure(tmp_path: Path) -> None:
    trials = plan(tmp_path, rungs=())
    assert write_report(trials, tmp_path, counter=PhraseCounter()) is None
    run_trials(trials, start=FakeTrainer(), say=ignore)
    table = write_report(trials, tmp_path, counter=PhraseCounter())
    assert table is not None and (tmp_path / "table.md").read_text() == table
    assert [row["rung"] for row in json.loads((tmp_path / "table.json").read_text())] == [rung.name for rung in RUNGS]
    samples = (tmp_path / "samples.md").read_text()
    assert "| 2 | 1 | 100.0% | 100.0% | wait 1 |" in samples
    pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    names = {"accuracy", "overlong", "clip_higher", "all_right", "dynamic_sampling", "loss_type", "monitoring"}
    assert set(pictures) == names
    for name, picture in pictures.items():
        assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < 150_000, name


def test_figures_of_rungs_that_were_not_run_are_left_out(tmp_path: Path) -> None:
    trials = plan(tmp_path, rungs=("clip-higher",))
    run_trials(trials, start=FakeTrainer(), say=ignore)
    write_report(trials, tmp_path, counter=PhraseCounter())
    assert {path.stem for path in tmp_path.glob("*.png")} == {"accuracy", "overlong", "clip_higher"}


def test_curves_are_averaged_where_all_seeds_have_them() -> None:
    from scripts.experiments.ablation.figures import over_seeds

    assert over_seeds([[(0, 1.0), (1, 3.0), (2, 9.0)], [(0, 2.0), (1, 5.0)]]) == [
        (0, 1.5, 1.0, 2.0),
        (1, 4.0, 3.0, 5.0),
    ]
    assert over_seeds([[(0, 1.0), (90, 3.0)], [(0, 2.0), (110, 5.0)]]) == [(0, 1.5, 1.0, 2.0), (100, 4.0, 3.0, 5.0)]
    assert over_seeds([]) == []


def test_the_script_refuses_before_it_runs_anything(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.experiments.ablation",
            "--config",
            str(SMALL),
            "--output",
            str(tmp_path),
            "--rungs",
            "dapo",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert result.returncode == 2
    assert "--rungs dapo: there is no such rung" in result.stderr
    assert CLIP_HIGHER.name in result.stderr
    assert list(tmp_path.iterdir()) == []
