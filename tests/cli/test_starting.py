"""Where a training starts: `--config` and `--resume`, alone and together."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.cli import starting
from dapo_openrlhf.cli.options import make_parser
from dapo_openrlhf.cli.starting import starting_point
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, dump_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.best import write_evaluation
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, RunState
from dapo_openrlhf.pipeline.prompts import PromptState
from dapo_openrlhf.pipeline.resume_point import Anew, ResumePoint, still_newest
from dapo_openrlhf.report.run_lock import run_lock


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration; its runs are called ``sums``."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(dump_config(config()))
    return tmp_path


def config(rate: float = 1e-5) -> Config:
    settings = {
        "device": "cpu",
        "run": {"name": "sums"},
        "actor": {"model_name_or_path": "model", "adam": {"lr": rate}},
        "ds": {"attn_implementation": "sdpa", "param_dtype": "fp32"},
        "rollout": {"max_new_tokens": 8},
        "data": {"prompt_dataset": "p.jsonl", "max_len": 16},
        "reward": {"overlong_buffer_len": 0},
    }
    return build_config(settings, source="test")


def make_run(name: str, *steps: int) -> list[Path]:
    run = Path("runs", name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config()))
    checkpoints = Checkpoints(run / "checkpoints", max_num=9, settings=dump_config(config()))
    paths = []
    for step in steps:
        Path(checkpoints.begin(step), "model.safetensors").write_text(str(step))
        state = RunState(step=step, prompts=PromptState(drawn=step, returned=(), prompt_count=9))
        paths.append(Path(checkpoints.finish(state)))
    return paths


def start(
    *arguments: str, overrides: dict[str, object] | None = None
) -> tuple[Config, ResumePoint | Anew | None, list[str]]:
    said: list[str] = []
    options = make_parser().parse_args(["train", *arguments])
    found, point = starting_point(options, overrides or {}, say=said.append)
    return found, point, said


def test_a_configuration_alone_starts_anew() -> None:
    make_run("sums", 3)
    assert start("--config", "c.yaml") == (config(), None, [])


def test_a_run_alone_goes_on_from_its_newest_checkpoint() -> None:
    _, newest = make_run("sums", 3, 5)
    found, point, said = start("--resume", "runs/sums", overrides={"actor.adam.lr": 2e-5})
    assert isinstance(point, ResumePoint)
    assert [change.name for change in point.changes] == ["actor.adam.lr"]
    point = replace(point, changes=())
    assert (found, point, said) == (config(2e-5), ResumePoint(run=Path("runs/sums"), checkpoint=newest), [])


def test_auto_starts_anew_where_there_is_nothing_to_go_on_from() -> None:
    assert start("--config", "c.yaml", "--resume", "auto") == (config(), None, [])


def test_auto_begins_anew_in_the_folder_of_a_run_that_kept_nothing() -> None:
    """Unless it is being written, or is not known to have held its lock, as a folder that is being made."""
    make_run("sums")
    make_run("sums-2")
    make_run("sums-3x")
    auto = ("--config", "c.yaml", "--resume", "auto")
    assert start(*auto) == (config(), Anew(run=Path("runs/sums-2")), [])
    with run_lock(Path("runs/sums-2")):
        assert start(*auto) == (config(), None, [])
    Path("runs/sums-3").mkdir()
    assert start(*auto) == (config(), None, [])


def test_auto_leaves_another_users_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("sums")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert start("--config", "c.yaml", "--resume", "auto") == (config(), None, [])


def test_a_checkpoint_that_a_run_made_at_its_end_is_not_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked for before the run ended, and the lock was found free after that."""
    make_run("sums")

    def ended(run: Path) -> bool:
        (run / "summary.json").touch()
        return False

    monkeypatch.setattr(starting, "is_being_written", ended)
    assert start("--config", "c.yaml", "--resume", "auto") == (config(), None, [])


@pytest.mark.parametrize("kept", ["summary.json", "checkpoint"])
def test_auto_leaves_a_run_with_a_result_alone(kept: str) -> None:
    make_run("sums")
    Path("runs/sums", kept).touch()
    assert start("--config", "c.yaml", "--resume", "auto") == (config(), None, [])


def test_a_run_can_begin_anew_in_its_folder() -> None:
    make_run("sums", 3)
    assert start("--config", "c.yaml", "--anew", "runs/sums") == (config(), Anew(run=Path("runs/sums")), [])


def test_auto_goes_on_with_the_run_of_that_name() -> None:
    make_run("sums")
    older, newest = make_run("sums-2", 3, 5)
    make_run("other", 7)
    assert start("--config", "c.yaml", "--resume", "auto")[1] == ResumePoint(run=Path("runs/sums-2"), checkpoint=newest)
    (newest / "model.safetensors").write_text("6")
    found, point, said = start("--config", "c.yaml", "--resume", "auto", overrides={"actor.adam.lr": 2e-5})
    assert isinstance(point, ResumePoint)
    assert (found, replace(point, changes=())) == (
        config(2e-5),
        ResumePoint(run=Path("runs/sums-2"), checkpoint=older),
    )
    assert (
        len(said) == 1 and "step-000005 is damaged and is passed over: model.safetensors has other contents" in said[0]
    )


def test_checkpoints_that_were_made_while_the_newest_one_was_verified_are_not_undone() -> None:
    """The run that made them has ended, and the one that goes on has its lock."""
    checkpoints = Checkpoints(Path("runs/sums/checkpoints"), max_num=1, settings=dump_config(config()))
    (first,) = make_run("sums", 3)
    changed: dict[str, object] = {"actor.adam.lr": 2e-5}
    found, point, _ = start("--config", "c.yaml", "--resume", "auto", overrides=changed)
    assert isinstance(point, ResumePoint) and point.checkpoint == first
    assert still_newest(point, found, pytest.fail) is point
    Path(checkpoints.begin(4), "model.safetensors").write_text("4")
    newest = Path(checkpoints.finish(RunState(step=4, prompts=PromptState(drawn=4, returned=(), prompt_count=9))))
    assert not first.exists()
    renewed = still_newest(point, found, pytest.fail)
    assert (renewed.checkpoint, [change.name for change in renewed.changes]) == (newest, [*changed])
    with pytest.raises(ConfigError, match=r"ds.zero_stage 2 -> 3"):
        still_newest(point, start("--config", "c.yaml", overrides={"ds.zero_stage": 3})[0], pytest.fail)


def test_auto_refuses_what_the_run_cannot_go_on_with() -> None:
    make_run("sums", 3)
    with pytest.raises(ConfigError, match=r"ds.zero_stage 2 -> 3"):
        start("--config", "c.yaml", "--resume", "auto", overrides={"ds.zero_stage": 3})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runs/sums",), "--anew runs/sums needs --config FILE"),
        (("runs/sums", "--config", "c.yaml", "--resume", "auto"), "and goes without --resume"),
        (("runs", "--config", "c.yaml"), "this is no run's folder, as it has no config.yaml"),
    ],
)
def test_what_cannot_begin_anew_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    make_run("sums", 3)
    assert main(["train", "--anew", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--config FILE or --resume RUN is needed"),
        (("--resume", "auto"), "--resume auto needs --config FILE"),
        (("--config", "c.yaml", "--resume", "runs/sums"), "--config and --resume runs/sums do not go together"),
        (("--resume", "runs/none"), "there is no such folder"),
    ],
)
@pytest.mark.parametrize("command", ["train", "submit"])
def test_options_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], command: str, arguments: tuple[str, ...], words: str
) -> None:
    assert main([command, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_checkpoints_are_listed_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run("sums", 3, 5)
    assert main(["checkpoint", "runs/sums"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(first), str(second)]
    (first / "model.safetensors").unlink()
    assert main(["checkpoint", "runs/sums"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("damaged") and lines[1] == "    model.safetensors is missing" and lines[2].endswith("good")
    assert main(["checkpoint", "runs"]) == 2
    assert "there is no checkpoint in it" in capsys.readouterr().err


def test_the_best_checkpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = make_run("sums", 3, 5, 7)
    checkpoints = Checkpoints(first.parent, max_num=9, first_step=3)
    write_evaluation(first, {"avg@2": 0.5, "pass@2": 0.625})
    write_evaluation(second, {"avg@2": 0.25, "pass@2": 0.75})
    assert checkpoints.best() == first
    assert main(["checkpoint", "runs/sums"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("good")[1].split() for line in lines] == [["avg@2", "50.0%", "best"], ["avg@2", "25.0%"], []]
    assert third.name in lines[2]
    settings = Path("runs/sums/config.yaml")
    evaluated = config().model_copy(update={"eval": config().eval.model_copy(update={"n_samples_per_prompt": 2})})
    by_pass = evaluated.model_copy(update={"ckpt": config().ckpt.model_copy(update={"best_metric_key": "pass@2"})})
    settings.write_text(dump_config(by_pass))
    assert main(["checkpoint", "runs/sums"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("good")[1].split() for line in lines] == [["pass@2", "62.5%"], ["pass@2", "75.0%", "best"], []]
