"""What a job does on its cluster: check, train, and train again from the newest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run.jobs.order import ORDER, Order, Request, entrypoint
from dapo_openrlhf.cli.job import perform, run_of
from dapo_openrlhf.config.loading import build_config, dump_config
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, RunState
from dapo_openrlhf.pipeline.prompts import PromptState
from dapo_openrlhf.report.status import Status, read_status


def settings(folder: Path) -> str:
    values = {
        "device": "cpu",
        "run": {"name": "sums", "dir": str(folder / "runs")},
        "actor": {"model_name_or_path": "model"},
        "ds": {"attn_implementation": "sdpa", "param_dtype": "fp32"},
        "rollout": {"max_new_tokens": 8},
        "data": {"prompt_dataset": "p.jsonl", "max_len": 16},
        "reward": {"overlong_buffer_len": 0},
    }
    return dump_config(build_config(values, source="test"))


class Commands:
    """Answers with the given statuses, and notes what was run; a training leaves what the test wants."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.run: list[list[str]] = []
        self.trained = lambda: None

    def __call__(self, arguments: Sequence[str]) -> int:
        self.run.append(list(arguments))
        if arguments[0] == "train":
            self.trained()
        return self.statuses.pop(0)


def done(
    folder: Path, commands: Commands, *, resume: str | None = None, retries: int = 0, stopped: bool = False
) -> int:
    order = Order(id="j1", settings=settings(folder), resume=resume, changes=("--train.seed", "7"), retries=retries)
    file = folder / "j1.yaml"
    file.write_text(order.settings)
    trainings = lambda: stopped and any(arguments[0] == "train" for arguments in commands.run)  # noqa: E731
    status = perform(order, file, run=commands, stopped=trainings, pause=0.0)
    assert commands.statuses == [], "everything was asked for"
    return status


def leave_run(folder: Path, name: str, job: str, *steps: int) -> Path:
    run = folder / "runs" / name
    run.mkdir(parents=True)
    Status(run, max_steps=9, first_step=0, job=job)
    checkpoints = Checkpoints(run / "checkpoints", max_num=9, settings=settings(folder))
    for step in steps:
        Path(checkpoints.begin(step), "model.safetensors").write_text(str(step))
        checkpoints.finish(RunState(step=step, prompts=PromptState(drawn=step, returned=(), prompt_count=9)))
    return run


def test_what_the_check_refuses_is_not_trained(tmp_path: Path) -> None:
    commands = Commands(1)
    assert done(tmp_path, commands, retries=3) == 1
    assert commands.run == [["check", "--config", str(tmp_path / "j1.yaml")]]


def test_a_training_that_succeeds_is_done_once(tmp_path: Path) -> None:
    commands = Commands(0, 0)
    assert done(tmp_path, commands, resume="auto", retries=3) == 0
    assert commands.run[1] == ["train", "--config", str(tmp_path / "j1.yaml"), "--resume", "auto"]


def test_a_run_is_gone_on_with_the_changed_settings(tmp_path: Path) -> None:
    commands = Commands(0, 0)
    done(tmp_path, commands, resume="/runs/a")
    assert commands.run == [[name, "--resume", "/runs/a", "--train.seed", "7"] for name in ("check", "train")]


def test_retries_go_on_from_this_jobs_newest_checkpoint(tmp_path: Path) -> None:
    """And not from that of another run of the same name."""
    leave_run(tmp_path, "sums", "j0", 5)
    commands = Commands(0, 1, 137, 0)
    ours: list[Path] = []
    commands.trained = lambda: ours.append(leave_run(tmp_path, "sums-2", "j1", 3)) if not ours else None
    assert done(tmp_path, commands, retries=3) == 0
    assert commands.run[2:] == [["train", "--resume", str(tmp_path / "runs" / "sums-2")]] * 2


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_retry_without_a_checkpoint_begins_anew_in_the_jobs_folder(tmp_path: Path, resume: str | None) -> None:
    commands = Commands(0, 1, 1)
    commands.trained = lambda: leave_run(tmp_path, "sums-2", "j1") if len(commands.run) == 2 else None
    assert done(tmp_path, commands, retries=1, resume=resume) == 1
    anew = ["train", "--config", str(tmp_path / "j1.yaml"), "--anew", str(tmp_path / "runs" / "sums-2")]
    assert commands.run[2] == anew


def test_a_retry_of_a_training_that_began_no_run_is_as_the_first(tmp_path: Path) -> None:
    leave_run(tmp_path, "sums", "j0")
    commands = Commands(0, 1, 1)
    assert done(tmp_path, commands, retries=1) == 1
    assert commands.run[2] == commands.run[1] == ["train", "--config", str(tmp_path / "j1.yaml")]


@pytest.mark.parametrize(("status", "stopped"), [(2, False), (143, True), (1, True)])
def test_what_is_refused_or_stopped_is_not_tried_again(tmp_path: Path, status: int, stopped: bool) -> None:
    assert done(tmp_path, Commands(0, status), retries=3, stopped=stopped) == status


@pytest.mark.parametrize(("statuses", "after"), [((0,), "check"), ((0, 1), "train")])
def test_a_stop_before_a_training_begins_is_no_success_and_begins_none(
    tmp_path: Path, statuses: tuple[int, ...], after: str
) -> None:
    """In the moment after the check, or in the pause before a retry, no command is there that would hear of it."""
    commands = Commands(*statuses)
    order = Order(id="j1", settings=settings(tmp_path), retries=3)
    file = tmp_path / "j1.yaml"
    file.write_text(order.settings)
    asked = iter([False] * len(statuses) + [True] * 9) if after == "train" else iter([True] * 9)
    assert perform(order, file, run=commands, stopped=lambda: next(asked), pause=0.0) == 143
    assert commands.run[-1][0] == after and not commands.statuses


def test_a_retry_of_a_run_that_is_gone_on_with_has_the_changed_settings_too(tmp_path: Path) -> None:
    """The attempt before it may have failed before it wrote them down."""
    run = leave_run(tmp_path, "sums", "j0", 5)
    commands = Commands(0, 1, 0)
    assert done(tmp_path, commands, resume=str(run), retries=1) == 0
    assert commands.run[1:] == [["train", "--resume", str(run), "--train.seed", "7"]] * 2


def test_the_run_of_a_job_is_its_newest(tmp_path: Path) -> None:
    assert run_of("j1", tmp_path / "runs") is None
    for name, job, time in (("a", "j1", 2.0), ("b", "j2", 9.0), ("c", "j1", 5.0)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        Status(run, max_steps=1, first_step=0, job=job, clock=lambda time=time: time)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "status.json").write_text("{")
    assert run_of("j1", tmp_path / "runs") == tmp_path / "runs" / "c"


def test_without_an_order_there_is_no_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(ORDER, raising=False)
    assert main(["job"]) == 2
    assert "dapo-openrlhf submit" in capsys.readouterr().err


def test_an_order_arrives_as_it_was_sent() -> None:
    order = Order(id="a b", settings="x: 'ü'\n", resume="auto", changes=("--a.b", "c d"), retries=2)
    assert Order.from_json(order.to_json()) == order


def test_a_request_says_what_ray_needs() -> None:
    request = Request(
        order=Order(id="j", settings=""),
        grace=25.5,
        working_dir="/w",
        excludes=(".git",),
        environment={"A": "1"},
        runtime_env={"pip": ["x"], "excludes": ["big"]},
        metadata={"who": "me"},
    )
    runtime = request.runtime()
    assert runtime["working_dir"] == "/w" and runtime["excludes"] == ["big", ".git"] and runtime["pip"] == ["x"]
    assert runtime["env_vars"] == {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "31", ORDER: request.order.to_json()}
    assert request.all_metadata()["who"] == "me" and request.all_metadata()["stop_seconds"] == "31"


def test_the_job_runs_in_the_uploaded_folder_or_in_this_ones_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert entrypoint(uploaded=True) == "python -u -m dapo_openrlhf job"
    assert entrypoint(uploaded=False).startswith(f"cd '{folder}' && exec ")


def test_a_status_tells_steps_and_the_time_left(tmp_path: Path) -> None:
    told: list[tuple[dict[str, str], bool]] = []
    status = Status(
        tmp_path,
        max_steps=10,
        first_step=4,
        publish=lambda values, last=False: told.append((dict(values), last)),
        clock=lambda: 1000.0,
    )
    assert read_status(tmp_path)["state"] == "starting"
    row = {"accuracy": 0.5, "tokens_per_second/trained": 1234.5, "seconds/step": 3.0, "eval/accuracy": 0.25}
    status.step(4, row, 3.0)
    status.step(5, {"accuracy": float("nan"), "seconds/step": 5.0}, 8.0)
    status.close()
    written = json.loads((tmp_path / "status.json").read_text())
    assert written["step"] == 6 and written["seconds_left"] == 16.0  # four steps at the median of 3 and 5 s
    assert (written["accuracy"], written["held_out"], written["state"]) == (0.5, 0.25, "ended")
    values, last = told[-1]
    assert last and values["dapo.step"] == "6" and values["dapo.run"] == str(tmp_path.resolve())
