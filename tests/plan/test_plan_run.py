"""`dapo-openrlhf plan RUN` over logs of every kind: what it says, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.plan import after
from dapo_openrlhf.plan.reading import PlannedRun, read_run
from dapo_openrlhf.plan.scenario import EngineSpeed, Scenario, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.simulation import simulate

RUN = Scenario(
    engines=1,
    engine=EngineSpeed(step=0.01),
    trainer=TrainerSpeed(step=0.5, per_token=1e-3),
    sync=SyncSpeed(send=0.05, deliver=0.1, pause=0.02),
    work=Work.drawn(
        groups=200, responses=2, mean=60, spread=0.5, most=200, pass_rate=0.7, prompt_tokens=5, reward_seconds=0.1
    ),
    batch_size=4,
    max_staleness=1,
    steps=16,
)
Lines = list[dict[str, Any]]


def write(folder: Path, scenario: Scenario = RUN, change: Callable[[Lines], Lines] = lambda lines: lines) -> Path:
    """A run's folder with the log of a simulation, after a change of its lines."""
    folder.mkdir(exist_ok=True)
    events = folder / "events.jsonl"
    with events.open("w", encoding="utf-8") as file:
        simulate(scenario, file=file)
    lines = change([json.loads(line) for line in events.read_text().splitlines()])
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def notes(run: PlannedRun) -> str:
    return "\n".join(run.notes)


def up_to(steps: int) -> Callable[[Lines], Lines]:
    """Keeps the lines up to the end of so many steps."""

    def change(lines: Lines) -> Lines:
        ends = [number for number, line in enumerate(lines) if line["event"] == "step_done"]
        return lines[: ends[steps - 1] + 1]

    return change


def test_the_command_prints_a_plan_and_writes_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after, "STALENESS", (0, 1, 2))
    monkeypatch.setattr(after, "GROUPS", 400)
    folder = write(tmp_path / "run")
    files = ["--json", str(tmp_path / "plan.json"), "--picture", str(tmp_path / "plan.png")]
    assert main(["plan", str(folder), *files]) == 0
    printed = capsys.readouterr().out
    for words in (
        "12 of 16 steps at K = 1 are counted",
        "fitted: ",
        "check: ",
        "recommended: async.max_staleness",
        "±",
    ):
        assert words in printed
    written = json.loads((tmp_path / "plan.json").read_text())
    own = {one["max_staleness"]: one for one in written["candidates"]}
    assert own.keys() == {0, 1, 2}
    assert written["fitted"]["trainer"]["per_token"] == pytest.approx(1e-3, rel=0.05)
    assert own[1]["step_seconds"] == pytest.approx(written["measured"]["step"], rel=0.1)
    assert own[0]["step_seconds"] == pytest.approx(simulate(RUN.at(0)).step, rel=0.1)
    assert {"over-sampling 1", "at deadline: cut"} <= {one["name"] for one in written["variants"]}
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_other_divisions_scale_the_trainer_and_keep_the_engines_size(tmp_path: Path) -> None:
    """One engine and three ranks: with two engines the tokens of a step take 3/2 as long to train."""

    def ranks(lines: Lines) -> Lines:
        return [line | {"trainer_ranks": 3, "devices": 4} if line["event"] == "run_started" else line for line in lines]

    run = read_run(write(tmp_path / "run", change=ranks))
    what_if = after.WhatIf(after.Material(run.life, run.settings))
    assert what_if.itself() is what_if.at(run.settings.max_staleness), "the run itself is simulated once"
    splits = {str(split) for split in after._splits(run.settings)}
    assert splits == {"2 x 1 : 2", "3 x 1 : 1"}
    two = after._with(run.settings, after.Split(engines=2, tensor_parallel=1, ranks=2))
    scenario = after._scenario(what_if.best, two, ranks=3, seed=0)
    assert scenario.trainer.per_token == pytest.approx(1.5 * what_if.best.trainer.per_token)
    assert (scenario.trainer.step, scenario.engines) == (what_if.best.trainer.step, 2)


def test_a_log_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short for a plan: 3 finished steps; at least 4"):
        read_run(write(tmp_path / "run", change=up_to(3)))


def test_few_steps_and_a_queue_that_never_filled_are_said(tmp_path: Path) -> None:
    said = notes(read_run(write(tmp_path / "run", RUN.at(4), up_to(6))))
    assert "only 3 steps are counted" in said
    assert "never got steady: 6 steps at K = 4" in said
    assert not read_run(write(tmp_path / "fine", dataclasses.replace(RUN, steps=24))).notes[1:]  # only: no config.yaml


def test_a_run_with_environments_is_said_to_be_planned_without_them(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    text = "actor: {model_name_or_path: m}\ndata: {prompt_dataset: p.jsonl}\ntrain: {agent_func_path: turns.py}\n"
    (run / "config.yaml").write_text(text)
    assert "environments answered" in notes(read_run(run))
    (run / "config.yaml").write_text(text.replace("train: {agent_func_path: turns.py}\n", ""))
    assert "environments answered" not in notes(read_run(run))


def test_a_run_whose_responses_grow_is_said_not_to_be_steady(tmp_path: Path) -> None:
    def grow(lines: Lines) -> Lines:
        return [
            line | {"response_tokens": line["response_tokens"] * (1 + line["step"])}
            if line["event"] == "batch_taken"
            else line
            for line in lines
        ]

    assert "the tokens of a response went from" in notes(read_run(write(tmp_path / "run", change=grow)))


def test_the_longest_life_of_a_resumed_and_rewound_run_is_taken(tmp_path: Path) -> None:
    def resumed(lines: Lines) -> Lines:
        first = up_to(5)(lines)
        rewound = {
            "time": first[-1]["time"], "event": "rewound", "from_step": 5, "to_step": 4, "restart": 1, "max_restarts": 3,
            "pause": 2.0, "message": "gone",
        }  # fmt: skip
        return [*first, rewound, *lines]

    run = read_run(write(tmp_path / "run", change=resumed))
    assert "the run began 3 times" in notes(run) and "steps 1 to 16 are taken" in notes(run)
    assert len(run.life.steps) == 16


def test_an_interrupted_last_step_is_not_counted(tmp_path: Path) -> None:
    def interrupted(lines: Lines) -> Lines:
        last = max(number for number, line in enumerate(lines) if line["event"] == "batch_taken")
        return lines[: last + 1]

    folder = write(tmp_path / "run", change=interrupted)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"time": 3')  # the process was killed while it wrote
    run = read_run(folder)
    assert len(run.life.steps) == 15
    assert "the last step was begun and not finished" in notes(run)


def test_damaged_lines_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    events = folder / "events.jsonl"
    lines = events.read_bytes().split(b"\n")
    lines[40], lines[60] = b"\0" * 30, b'{"time": 1.0, "event": "group_gen\xff'
    events.write_bytes(b"\n".join(lines))
    run = read_run(folder)
    assert "2 damaged lines are left out" in notes(run) and "line 41" in notes(run)
    assert len(run.life.steps) == 16
    events.write_bytes(b"".join(b"rubbish\n" for _ in range(100)))
    with pytest.raises(ConfigError, match="100 of 100 lines are no events of this version"):
        read_run(folder)
    events.write_text("")
    with pytest.raises(ConfigError, match="holds no run"):
        read_run(folder)
    with pytest.raises(ConfigError, match=r"no events\.jsonl"):
        read_run(tmp_path)


def test_an_old_log_is_read_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    def old(lines: Lines) -> Lines:
        return [
            {key: value for key, value in line.items() if key not in ("lengths", "prompt_tokens")} for line in lines
        ]

    run = read_run(write(tmp_path / "run", change=old))
    assert "without the length of each response and of the prompt" in notes(run)
    assert after.Material(run.life, run.settings).fit().trainer.step > 0


def test_evaluations_and_lost_engines_are_kept_out_and_said(tmp_path: Path) -> None:
    def disturbed(lines: Lines) -> Lines:
        middle, later = lines[len(lines) // 2], lines[len(lines) // 2 + 60]
        return sorted(
            [
                *lines,
                {"time": middle["time"], "event": "engine_lost", "engine": 0, "message": "killed"},
                {"time": later["time"], "event": "engine_replaced", "engine": 0, "times": 1},
                {
                    "time": later["time"], "event": "evaluated", "step": 9, "version": 9, "accuracy": 0.5, "problems": 1,
                    "responses": 1, "errors": 0, "estimates": {}, "seconds": 2.0,
                },
            ],
            key=lambda line: line["time"],
        )  # fmt: skip

    run = read_run(write(tmp_path / "run", change=disturbed))
    assert "evaluation, loss or silence" in notes(run)
    assert len(run.life.disturbances) == 2


def test_the_log_counts_where_the_configuration_says_otherwise(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "config.yaml").write_text("async: {max_staleness: [}")
    assert "is no configuration of this version" in notes(read_run(folder))
    shipped = (Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml").read_text()
    (folder / "config.yaml").write_text(shipped)
    run = read_run(folder)
    assert "rollout.batch_size is 16 in config.yaml, but these steps ran with 4" in notes(run)
    assert run.settings.batch_size == 4
    assert run.settings.shared  # a CPU run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "plan RUN"),
        (["RUN", "--gpu", "h100"], "--gpu"),
        (["--gpu", "h100", "--devices", "8"], "plan RUN"),
        (["RUN", "RUN"], "takes everything from the run"),
        (["RUN", "--async.max_staleness", "2"], "--async.max_staleness 2"),
        (["RUN", "--json", "/nowhere/plan.json"], "--json"),
        (["--config", "CONFIG"], "--devices N"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    run = write(tmp_path / "run")
    config = Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml"
    given = [{"RUN": str(run), "CONFIG": str(config)}.get(argument, argument) for argument in arguments]
    assert main(["plan", *given]) == 2
    assert said in capsys.readouterr().err
