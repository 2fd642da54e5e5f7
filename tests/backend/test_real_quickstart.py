"""The whole thing on real Ray, vLLM and DeepSpeed, as a user runs it: it learns, and leaves what it should."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import HANG_SECONDS

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / ".cache" / "quickstart"
STEPS = 25
NAME = "test-quickstart"
SECRETS = {
    "HF_TOKEN": "hf_planted-token",
    "OPENAI_API_KEY": "sk-planted-key",
    "AWS_SECRET_ACCESS_KEY": "planted-secret",
    "DATABASE_PASSWORD": "planted-password",
    "DATABASE_URL": "postgres://me:planted-user@localhost/x",
}
"""What the environment of the run holds, and nothing that it leaves may."""
UMASK = 0o027


@pytest.fixture(scope="module", autouse=True)
def ray_files() -> Iterator[Path]:
    """A folder for Ray's files whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def base_model() -> Path:
    """The quickstart's model and prompts, built as `make quickstart` builds them, or from its cache."""
    for command in (
        ["scripts/build_quickstart_model.py", "--output", str(QUICKSTART / "model")],
        ["data/quickstart_prompts.py", "--output", str(QUICKSTART / "prompts")],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=HANG_SECONDS)
    return QUICKSTART / "model"


@pytest.fixture(scope="module")
def run(base_model: Path, ray_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one short run."""
    folder = tmp_path_factory.mktemp("runs")
    result = _command("train", ray_files, f"run.dir={folder}", f"run.name={NAME}", f"train.max_steps={STEPS}")
    (folder / "console").write_text(result.stdout + result.stderr)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "held-out accuracy" in result.stdout
    assert "error" not in (result.stdout + result.stderr).lower(), "a run that goes well frightens nobody"
    return folder / NAME


def _command(command: str, ray_files: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dapo_openrlhf", command, "--config", "configs/quickstart_cpu.yaml", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        umask=UMASK,
        env={**os.environ, **SECRETS, "RAY_TMPDIR": str(ray_files)},
    )


def _summary(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def _events(run: Path, name: str) -> list[dict[str, Any]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == name]


def test_held_out_accuracy_rises(run: Path) -> None:
    summary = _summary(run)
    assert 0.3 <= summary["accuracy_before"] <= 0.6
    assert summary["accuracy_after"] - summary["accuracy_before"] >= 0.25


def test_no_trained_group_is_older_than_allowed(run: Path) -> None:
    summary = _summary(run)
    assert summary["max_staleness"] == 1
    ages = [age for batch in _events(run, "batch_taken") for age in batch["ages"]]
    assert len(ages) == STEPS * 16
    assert max(ages) == summary["max_policy_age"] == 1


def test_counters_balance_with_what_happened(run: Path) -> None:
    counters = _summary(run)["counters"]
    judged = _events(run, "group_judged")
    assert counters["trained"] == STEPS * 16 == sum(len(batch["groups"]) for batch in _events(run, "batch_taken"))
    assert counters["dispatched"] == (
        counters["trained"]
        + counters["training"]
        + sum(counters["dropped"].values())
        + sum(counters["failed"].values())
        + counters["in_flight"]
        + counters["ready"]
    )
    surplus = len(_events(run, "group_surplus"))
    assert sum(counters["dropped"].values()) <= sum(not event["keep"] for event in judged) + surplus
    assert counters["failed"] == {}


def test_weights_are_live_after_every_step(run: Path) -> None:
    versions = [event["version"] for event in _events(run, "publication_live")]
    assert versions == list(range(1, STEPS + 1))
    assert len({event["checksum"] for event in _events(run, "publication_live")}) == STEPS


def test_engine_and_trainer_stay_the_same_policy(run: Path) -> None:
    """In float32 what vLLM reports and what the trainer computes differ by staleness only.

    At age 0 they are equal. Later the estimate has a heavy tail, a token in thousands decides it, so its median counts.
    """
    kl = [step["statistics"]["rollout_kl"] for step in _events(run, "step_trained")]
    assert abs(kl[0]) < 1e-6
    assert statistics.median(kl) < 0.01
    assert max(kl) < 0.5


def test_the_run_leaves_everything(run: Path) -> None:
    for name in ("config.yaml", "events.jsonl", "summary.json", "curves.png"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert (run.parent / "latest").resolve() == run.resolve()


def test_the_model_is_complete_for_the_hub(run: Path) -> None:
    from huggingface_hub import ModelCard

    left = {path.name for path in (run / "checkpoint").iterdir()}
    assert left >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    card = ModelCard.load(run / "checkpoint" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    summary = _summary(run)
    assert f"{STEPS:,} rollout steps" in card.text
    assert f"| {summary['accuracy_before']:.1%} | {summary['accuracy_after']:.1%} |" in card.text


def test_no_secret_of_the_environment_is_in_what_it_leaves(run: Path, ray_files: Path) -> None:
    left = [path for folder in (run.parent, ray_files) for path in folder.rglob("*") if path.is_file()]
    assert run.parent / "console" in left and run / "config.yaml" in left and run / "checkpoint/config.json" in left
    assert [path for path in left if b"planted" in path.read_bytes()] == []


def test_what_it_leaves_may_be_read_by_whom_the_umask_lets(run: Path) -> None:
    modes = {path: path.stat().st_mode & 0o777 for path in [run, *run.rglob("*")]}
    assert {path.name for path in modes} >= {"model.safetensors", "events.jsonl", "curves.png"}
    wrong = [f"{path}: {mode:o}" for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)]
    assert wrong == []


def test_the_checkpoint_loads_and_answers_as_well(run: Path, ray_files: Path, tmp_path: Path) -> None:
    """In transformers, which must find every weight, and in vLLM, through `eval`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, report = AutoModelForCausalLM.from_pretrained(run / "checkpoint", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(run / "checkpoint").eos_token is not None
    answer = tmp_path / "eval.json"
    held_out = yaml.safe_load((run / "config.yaml").read_text())["eval"]["dataset"][0]
    sets = ["--eval.dataset", f"whole={held_out}", f"few={held_out}", "--eval.sets.few.max_samples", "8"]
    own = ["--eval.sets.few.n_samples_per_prompt", "3", "--eval.sets.few.temperature", "1.0"]
    kept = ["--json", str(answer), "--responses", str(tmp_path / "responses.jsonl")]
    result = _command("eval", ray_files, f"actor.model_name_or_path={run / 'checkpoint'}", *sets, *own, *kept)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(answer.read_text())
    assert found["accuracy"] == pytest.approx(_summary(run)["accuracy_after"], abs=0.05)
    few = found["sets"]["few"]
    assert (few["problems"], few["responses"], few["temperature"], few["errors"]) == (8, 24, 1.0, 0)
    assert len((tmp_path / "responses.few.jsonl").read_text().splitlines()) == 24
    assert len((tmp_path / "responses.whole.jsonl").read_text().splitlines()) == found["sets"]["whole"]["responses"]
