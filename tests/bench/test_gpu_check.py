"""gpu_check as far as a machine without a GPU goes: it says so at once, keeps limits, and assesses figures rightly."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from event_files import batch_taken, group_judged, run_started, write_events
from patience import HANG_SECONDS

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.own_cluster import Size
from dapo_openrlhf.bench.arm import WARM_UP_STEPS, ArmError
from dapo_openrlhf.bench.gpu_check import __main__ as gpu_check
from dapo_openrlhf.bench.gpu_check import process, stock
from dapo_openrlhf.bench.gpu_check.__main__ import main
from dapo_openrlhf.bench.gpu_check.check import Check, table
from dapo_openrlhf.bench.gpu_check.installation import assess_versions
from dapo_openrlhf.bench.gpu_check.learning import assess_learning
from dapo_openrlhf.bench.gpu_check.marks import Card, Range
from dapo_openrlhf.bench.gpu_check.parts import assess_agreement, parts
from dapo_openrlhf.bench.gpu_check.settings import settings_at
from dapo_openrlhf.bench.gpu_check.stock import arguments, assess_stock, run_stock
from dapo_openrlhf.bench.gpu_check.training import assess_run, figures
from dapo_openrlhf.bench.stock import driver, flushing
from dapo_openrlhf.bench.stock.on_cpu import SIMULATED_GPUS
from dapo_openrlhf.bench.stock.steps import NEEDED
from dapo_openrlhf.bench.workload.random_model import PROMPT_TOKENS, random_workload
from dapo_openrlhf.config.loading import build_config, load_config
from dapo_openrlhf.pipeline.events import Event, PublicationLive, StepDone, WorkerSpans
from dapo_openrlhf.types import PolicyVersion, Span

# One H200 as it was measured (docs/gpus.md), and its matrix product as its kind reaches it.
VERSIONS: dict[str, Any] = {
    "gpu": "H200",
    "gpus": 1,
    "memory_gb": 141.0,
    "cuda": "13.0",
    "packages": {"torch": "2.11.0", "vllm": "0.26.0", "flashinfer-python": None},
    "flash_attention_compiled": True,
    "copy_bytes": 988_000_000,
    "copy_seconds": 0.0005,
    "flops": 7e14,
}
WORK = {"parameters": 494_000_000, "tensors": 290, "bytes": 988_000_000}
AGREEMENT: dict[str, Any] = {
    "before": {"mean": 0.0076, "largest": 0.039},
    "after": {"mean": 0.0062, "largest": 0.023},
    "unpublished": {"mean": 0.0745, "largest": 2.0},
    "publication": 0.215,
    "send": 0.082,
    "pause": 0.121,
    "bytes": 988_000_000,
}
K0 = {
    "step_median": 7.66,
    "trainer_tokens_per_second": 57_200.0,
    "max_age": 0,
    "generate_seconds": 4.42,
    "train_seconds": 2.97,
    "pause_seconds": 0.172,
}
K1 = K0 | {"step_median": 4.71, "trainer_tokens_per_second": 37_500.0, "max_age": 1, "train_seconds": 4.53}
HEALTHY: dict[str, Any] = {"versions": VERSIONS, "work": WORK, "agreement": AGREEMENT, "k0": K0, "k1": K1}
PARTS = parts(gpus=1, stock=True)
ROOT = Path(__file__).parents[2]


def verdicts(checks: list[Check]) -> list[bool]:
    return [check.passed for check in checks if check.passed is not None]


def test_without_a_gpu_it_says_so_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([]) == 2
    assert "there is no NVIDIA GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "versions,speed"], "no speed; choose among versions, work, agreement, k0, k1, learn, k2, stock"),
        (["--gpus", "2"], "--gpus: 2 are asked for, 1 can be seen (CUDA_VISIBLE_DEVICES); use --gpus 1"),
    ],
)
def test_what_cannot_be_checked_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_part_that_breaks_costs_its_own_answer_and_fails_the_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Device, "count", lambda self: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    patient = tuple(dataclasses.replace(part, limit=HANG_SECONDS) for part in PARTS)
    monkeypatch.setattr(gpu_check, "parts", lambda **settings: patient)
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
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "k1 no time was left to finish FAILED" in lines
    assert "learn not run: no time was left" in lines, "what may be left out fails nothing"


def test_as_many_gpus_as_there_are_up_to_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def note(part: list[str], *rest: object) -> str:
        asked.append(part)
        return "not tried"

    monkeypatch.setattr(Device, "count", lambda self: 8)
    monkeypatch.setattr(process, "_failure", note)
    main(["--parts", "k0", "--json", str(tmp_path / "out.json")])
    assert asked == [["k0", "--gpus", "2"]]
    assert json.loads((tmp_path / "out.json").read_text())["gpus"] == 2


def test_what_worked_passes() -> None:
    """Every mark holds for the figures of a card on which everything worked."""
    checks = [check for part in PARTS if part.name in HEALTHY for check in part.assess(HEALTHY)]
    assert [check.name for check in checks if check.passed is False] == []
    assert sum(check.passed is True for check in checks) == 9


def test_marks_are_arithmetic() -> None:
    """290 tensors at 0.2 to 0.5 ms, ten copies of 0.5 ms; 0.2 to 0.5 of 700 TFLOP/s over six operations a parameter."""
    card = Card.of(HEALTHY)
    assert card is not None
    assert (card.pause.best, card.pause.worst) == pytest.approx((58.0, 150.0))
    assert (card.trainer_rate.worst, card.trainer_rate.best) == pytest.approx((47_233, 118_084), rel=1e-4)
    shared = card.overlapped_step(generate=4.0, train=3.0, step=8.0)
    assert (shared.best, shared.worst) == pytest.approx((4.0, 6.8))
    two = dataclasses.replace(card, gpus=2)
    assert two.pause.worst == pytest.approx(150.0 + 988 / 5)
    apart = two.overlapped_step(generate=4.0, train=3.0, step=8.0)
    assert (apart.best, apart.worst) == pytest.approx((4.0, 5.0))


def test_a_range_has_one_bad_end() -> None:
    times, rates = Range(best=1.0, worst=2.0), Range(best=200.0, worst=100.0)
    assert [times.passes(value) for value in (0.5, 2.0, 2.1)] == [True, True, False]
    assert [rates.passes(value) for value in (300.0, 100.0, 99.0)] == [True, True, False]


def test_agreement_passes_and_fails_where_it_should() -> None:
    def assessed(**figures: Any) -> list[bool]:
        return verdicts(assess_agreement(HEALTHY | {"agreement": AGREEMENT | figures}))

    assert assessed() == [True, True, True]
    assert assessed(after={"mean": 0.0745, "largest": 2.0}) == [True, False, True], "as if nothing were published"
    assert assessed(pause=0.151) == [True, True, False]


def test_without_a_measured_card_speeds_are_only_shown() -> None:
    assert verdicts(assess_agreement({"agreement": AGREEMENT | {"pause": 9.0}})) == [True, True]
    assert verdicts(assess_run(1)({"k1": K1 | {"step_median": 99.0}})) == [True]


def test_k1_is_held_to_what_k0_took_and_every_k_to_its_bound() -> None:
    assert verdicts(assess_run(1)(HEALTHY | {"k1": K1 | {"step_median": 0.86 * 7.66}})) == [False, True]
    assert verdicts(assess_run(0)(HEALTHY | {"k0": K0 | {"max_age": 1}})) == [True, True, False]
    slow = K0 | {"generate_seconds": 512 * 0.0151, "trainer_tokens_per_second": 47_000.0}
    assert verdicts(assess_run(0)(HEALTHY | {"k0": slow})) == [False, False, True]


def test_flash_attn_may_be_absent_and_vllm_may_not() -> None:
    without = VERSIONS | {"flash_attention_compiled": False}
    assert verdicts(assess_versions({"versions": without})) == [True]
    missing = VERSIONS | {"packages": {"torch": "2.13.0", "vllm": None, "flashinfer-python": None}}
    assert verdicts(assess_versions({"versions": missing})) == [False]


def test_the_quickstart_must_learn() -> None:
    learned = {"accuracy_before": 0.456, "accuracy_after": 0.95, "train_seconds": 60.0, "steps": 40}
    assert verdicts(assess_learning({"learn": learned})) == [True]
    assert verdicts(assess_learning({"learn": learned | {"accuracy_after": 0.5}})) == [False]


def test_stock_is_shown_beside_k1() -> None:
    found = {"name": "stock OpenRLHF, asynchronous", "step_median": 25.8}
    (check,) = assess_stock(HEALTHY | {"stock": found})
    assert (check.measured, check.passed) == ("25.80 s, 5.5 times K = 1", None)


@pytest.mark.parametrize("gpus", [1, 2])
def test_stock_gets_the_same_work_and_the_card_s_own_kernels(tmp_path: Path, gpus: int) -> None:
    words = arguments(random_workload(tmp_path), tmp_path, gpus=gpus)
    options = dict(pairwise(words))
    ours = settings_at(1, random_workload(tmp_path), gpus=gpus, steps=1)
    assert options["--rollout.batch_size"] == str(ours["rollout"]["batch_size"])
    assert options["--train.batch_size"] == str(ours["train"]["batch_size"])
    assert (options["--ds.param_dtype"], options["--ds.attn_implementation"]) == ("bf16", "flash_attention_2")
    assert "--vllm.enforce_eager" not in words, "CUDA graphs are used"
    assert ("--train.colocate_all" in words, "--train.async_enable" in words) == ((gpus == 1), (gpus == 2))


def test_stock_runs_in_a_closed_ray_of_its_own_that_has_real_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts run in processes that may have inherited what an arm on a CPU is told."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv(SIMULATED_GPUS, "2")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    started: list[tuple[list[str], dict[str, str], Path]] = []
    ends = [10.0 * step for step in range(1, WARM_UP_STEPS + 3)]

    def run_driver(words: list[str], environment: dict[str, str], log: Path, timeout: float) -> None:
        assert timeout < PARTS[-1].limit
        started.append((words, environment, log))

    def read_scalars(folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
        values = dict.fromkeys(NEEDED, 1.0) | {"rollout/num_samples": 256.0}
        return {name: {i + 1: (end, value) for i, end in enumerate(ends)} for name, value in values.items()}

    monkeypatch.setattr(stock, "run_driver", run_driver)
    monkeypatch.setattr(stock, "read_scalars", read_scalars)
    assert run_stock(2)(tmp_path)["step_seconds"] == [10.0, 10.0]
    ((words, environment, log),) = started
    assert not {"RAY_ADDRESS", SIMULATED_GPUS} & environment.keys()
    assert environment["NCCL_SOCKET_IFNAME"] == "eth7", "the user's own settings are kept"
    assert environment["PYTHONPATH"].split(":")[0] == str(ROOT)
    assert str(tmp_path / "stock" / "tensorboard") in words and log.parent == tmp_path

    sizes: list[tuple[Size, dict[str, Any]]] = []

    @contextmanager
    def own_cluster(size: Size, *, say: object, options: dict[str, Any]) -> Iterator[None]:
        sizes.append((size, options["runtime_env"]))
        yield

    monkeypatch.delenv(SIMULATED_GPUS)
    monkeypatch.setattr(Device, "count", lambda self: 2)
    monkeypatch.setattr(driver, "own_cluster", own_cluster)
    monkeypatch.setattr(runpy, "run_module", lambda name, **how: started.append(([name], {}, Path())))
    monkeypatch.setattr(flushing, "install", lambda: None)
    driver.main()
    ((size, processes),) = sizes
    assert size.gpus == 2 and size.object_store_bytes is None
    assert processes["worker_process_setup_hook"] == "dapo_openrlhf.bench.stock.flushing.install", "nothing of a CPU's"
    assert started[-1][0] == ["openrlhf.cli.train_ppo_ray"]


def test_stock_that_does_too_few_steps_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_driver(words: list[str], environment: dict[str, str], log: Path, timeout: float) -> None:
        log.write_text("out of prompts\n")

    monkeypatch.setattr(stock, "run_driver", run_driver)
    monkeypatch.setattr(stock, "read_scalars", lambda folder: {})
    with pytest.raises(ArmError, match=r"did 0 complete steps.*\n.*out of prompts"):
        run_stock(1)(tmp_path)


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


@pytest.mark.parametrize(("gpus", "way"), [(1, "ipc"), (2, "nccl")])
@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_its_runs_are_configurations_that_run(tmp_path: Path, max_staleness: int, gpus: int, way: str) -> None:
    config = build_config(settings_at(max_staleness, random_workload(tmp_path), gpus=gpus, steps=6), source="test")
    assert (config.devices, config.weight_transfer, config.updates_per_step) == (gpus, way, 2)


def test_the_quickstart_is_the_same_work_on_a_gpu() -> None:
    """What differs is where it runs."""
    cpu, gpu = (load_config(ROOT / "configs" / f"quickstart_{kind}.yaml").model_dump() for kind in ("cpu", "gpu"))
    differing = {
        f"{section}.{name}" if isinstance(values, dict) else section
        for section, values in cpu.items()
        for name in (values if isinstance(values, dict) else [""])
        if (values[name] if isinstance(values, dict) else values)
        != (gpu[section][name] if isinstance(values, dict) else gpu[section])
    }
    assert differing == {"device", "ds.param_dtype", "vllm.gpu_memory_utilization", "train.colocate_all"}


def test_the_table_lines_up() -> None:
    lines = table([Check(name="a", measured="1"), Check(name="long name", measured="2", expected="3", passed=False)])
    assert lines.splitlines() == [
        "check      measured  expected",
        "a          1",
        "long name  2         3         FAILED",
    ]
