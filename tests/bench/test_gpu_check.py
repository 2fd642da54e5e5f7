"""gpu_check as far as a machine without a GPU goes: it says so at once, keeps limits, and judges figures rightly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from event_files import batch_taken, group_judged, run_started, write_events
from patience import HANG_SECONDS

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.bench.gpu_check import __main__ as gpu_check
from dapo_openrlhf.bench.gpu_check import process
from dapo_openrlhf.bench.gpu_check.__main__ import main
from dapo_openrlhf.bench.gpu_check.check import Check, table
from dapo_openrlhf.bench.gpu_check.installation import judge_versions
from dapo_openrlhf.bench.gpu_check.parts import PARTS, compare, judge_agreement
from dapo_openrlhf.bench.gpu_check.settings import settings_at
from dapo_openrlhf.bench.gpu_check.training import figures, judge_run
from dapo_openrlhf.bench.workload.random_model import PROMPT_TOKENS, random_workload
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.events import Event, PublicationLive, StepDone, WorkerSpans
from dapo_openrlhf.types import PolicyVersion, Span

AGREEMENT: dict[str, Any] = {
    "before": {"mean": 0.009, "largest": 0.04},
    "after": {"mean": 0.01, "largest": 0.05},
    "unpublished": {"mean": 0.3, "largest": 2.0},
    "publication": 0.06,
    "send": 0.004,
    "pause": 0.03,
    "bytes": 988_000_000,
}
RUN = {
    "step_median": 8.0,
    "trainer_tokens_per_second": 50_000.0,
    "max_age": 1,
    "generate_seconds": 6.0,
    "train_seconds": 2.5,
    "pause_seconds": 0.04,
}


def verdicts(checks: list[Check]) -> list[bool]:
    return [check.passed for check in checks if check.passed is not None]


def test_without_a_gpu_it_says_so_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([]) == 2
    assert "there is no NVIDIA GPU here" in capsys.readouterr().err


def test_unknown_parts_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert main(["--parts", "versions,speed"]) == 2
    assert "there is no speed; choose among versions, work, agreement, k1, k0, k2" in capsys.readouterr().err


def test_a_part_that_breaks_costs_its_own_answer_and_fails_the_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Device, "count", lambda self: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    patient = tuple(dataclasses.replace(part, limit=HANG_SECONDS) for part in PARTS)
    monkeypatch.setattr(gpu_check, "PARTS", patient)
    arguments = ["--parts", "versions", "--budget", str(HANG_SECONDS), "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "failed with exit status 1" in printed
    assert "Error: " in printed, "the last lines of its log are shown"
    (check,) = json.loads((tmp_path / "out.json").read_text())["checks"]
    assert (check["name"], check["passed"]) == ("versions", False)


def test_parts_do_not_start_once_the_time_is_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "count", lambda self: 1)
    monkeypatch.setattr(process, "_failure", lambda *arguments: pytest.fail("a part was started"))
    assert main(["--budget", "0"]) == 1
    assert capsys.readouterr().out.count("no time was left") == 2 * len(PARTS)


def test_agreement_passes_and_fails_where_it_should() -> None:
    assert verdicts(judge_agreement(AGREEMENT)) == [True, True, True]
    stale = AGREEMENT | {"after": {"mean": 0.3, "largest": 2.0}}
    assert verdicts(judge_agreement(stale)) == [True, False, True]
    assert verdicts(judge_agreement(AGREEMENT | {"pause": 0.051})) == [True, True, False]


def test_a_publication_is_told_in_copies() -> None:
    assert compare({"agreement": AGREEMENT}) == []
    (check,) = compare({"agreement": AGREEMENT, "versions": {"copy_seconds": 0.0006}})
    assert check.measured == "100"


def test_only_k1_is_held_to_speeds_and_every_k_to_its_bound() -> None:
    assert verdicts(judge_run(1)(RUN)) == [True, True, True]
    assert verdicts(judge_run(1)(RUN | {"step_median": 9.0, "trainer_tokens_per_second": 44_999.0})) == [
        False,
        False,
        True,
    ]
    assert verdicts(judge_run(0)(RUN | {"step_median": 20.0})) == [False], "age 1 at K = 0"


def test_flash_attn_may_be_absent_and_vllm_may_not() -> None:
    found: dict[str, Any] = {
        "gpu": "H100",
        "memory_gb": 80.0,
        "cuda": "13.0",
        "packages": {"torch": "2.13.0", "vllm": None, "flashinfer-python": None},
        "flash_attention_compiled": False,
        "copy_seconds": 0.0007,
    }
    assert verdicts(judge_versions(found)) == [False]
    assert verdicts(judge_versions(found | {"packages": {"vllm": "0.29.0", "flashinfer-python": None}})) == [True]


def _span(worker: str, kind: str, start: float, end: float) -> Span:
    """Times on the log's clock, which begins at Unix time 1,000."""
    return Span(worker=worker, kind=kind, start=1000 + start, end=1000 + end)


def test_figures_come_from_the_event_log(tmp_path: Path) -> None:
    """Two updates of 2 s and 0.5 s + 0.5 s after it; 10 responses of 100 tokens and as many prompts of 64 a step."""
    events: list[tuple[float, Event]] = [(0.0, run_started(1000.0))]
    for step in range(5):
        now = 10.0 * (step + 1)
        spans = (
            _span("trainer 0", "update", now - 2, now - (1.5 if step else 0)),
            _span("engine 0", "load_weights", now - 1, now - 0.97),
            _span("engine 0", "generate", now - 9, now - 1),
        )
        events += [
            (now - 4, group_judged(keep=True)),
            (now - 3, batch_taken(step, ages=(0, 1), responses=10, response_tokens=1000)),
            (now, WorkerSpans(spans=spans)),
            (now, PublicationLive(version=PolicyVersion(step + 1), seconds=0.1, bytes=1, checksum=1)),
            (now, StepDone(step=step, laps={})),
        ]
    path = tmp_path / "events.jsonl"
    write_events(path, events)
    found = figures(path)
    assert found["step_median"] == pytest.approx(10.0)
    assert found["trainer_tokens_per_second"] == pytest.approx((1000 + 10 * PROMPT_TOKENS) / 0.5)
    assert found["pause_seconds"] == pytest.approx(0.03)
    assert (found["max_age"], found["publish_seconds"]) == (1, pytest.approx(0.1))


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_its_runs_are_configurations_that_run(tmp_path: Path, max_staleness: int) -> None:
    config = build_config(settings_at(max_staleness, random_workload(tmp_path), steps=6), source="test")
    assert (config.devices, config.weight_transfer, config.updates_per_step) == (1, "ipc", 2)


def test_the_table_lines_up() -> None:
    lines = table([Check(name="a", measured="1"), Check(name="long name", measured="2", wanted="3", passed=False)])
    assert lines.splitlines() == [
        "check      measured  wanted",
        "a          1",
        "long name  2         3       FAILED",
    ]
