"""``scripts/gpu_check.sh``: does an installation do on one GPU what it should, and how fast?

Parts run one after the other in processes of their own, each with a limit, so that one that hangs or breaks costs its own
answer and nothing else. What is printed is one table; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.bench.workload import random_model as gpu_work

PACKAGES = ("torch", "vllm", "flash-attn", "deepspeed", "transformers", "openrlhf", "ray", "flashinfer-python")
STEPS = 6
"""Rollout steps of each run; the first ones are warm-up, see ``arms.WARM_UP_STEPS``."""
COPIES = 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table."""

    name: str
    measured: str
    wanted: str = ""
    """In words; empty for a figure that is only shown."""
    passed: bool | None = None
    """None for a figure that is only shown."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process."""

    name: str
    limit: float
    """Seconds."""
    run: Callable[[Path], Mapping[str, Any]]
    """In that process; is given the folder with the work."""
    judge: Callable[[Mapping[str, Any]], list[Check]]
    """In this one."""


# What is measured


def versions(folder: Path) -> dict[str, Any]:
    """What is installed on what, and how long the device takes for a copy of the model's size."""
    import torch

    device = torch.cuda.get_device_properties(0)
    weights = torch.empty(988_000_000, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(weights)
    seconds = []
    for _ in range(COPIES):
        torch.cuda.synchronize()
        started = time.perf_counter()
        copy.copy_(weights)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    compiled = importlib.util.find_spec("flash_attn_2_cuda") is not None
    return {
        "gpu": device.name,
        "memory_gb": device.total_memory / 1e9,
        "cuda": torch.version.cuda,
        "packages": installed,
        "flash_attention_compiled": compiled,
        "copy_seconds": statistics.median(seconds),
    }


def work(folder: Path) -> dict[str, Any]:
    """The model and the prompts of all later parts."""
    return {"parameters": gpu_work.build_work(folder)}


def agreement(folder: Path) -> dict[str, Any]:
    """Engine against trainer, before and after ten publications."""
    from dapo_openrlhf.backend.run.inputs import read_prompts
    from dapo_openrlhf.bench.gpu_check.agreement import measure
    from dapo_openrlhf.config.settings import build_config

    settings = gpu_work.settings(folder, max_staleness=0, steps=1, learning_rate=1e-5)
    settings["train"]["batch_size"] = gpu_work.SAMPLES
    config = build_config(settings, source="gpu_check")
    return measure(config, list(read_prompts(config))).as_dict()


def run_of(max_staleness: int) -> Callable[[Path], dict[str, Any]]:
    """A whole training at K = ``max_staleness``."""

    def run(folder: Path) -> dict[str, Any]:
        import yaml

        file = folder / f"k{max_staleness}.yaml"
        file.write_text(yaml.safe_dump(gpu_work.settings(folder, max_staleness=max_staleness, steps=STEPS)))
        subprocess.run([sys.executable, "-m", "dapo_openrlhf", "train", "--config", str(file)], check=True)
        return figures(folder / "runs" / f"k{max_staleness}" / "events.jsonl")

    return run


def figures(events_file: Path) -> dict[str, Any]:
    """Figures of a run, from its event log."""
    from dapo_openrlhf.bench.arms import read_our_run

    run = read_our_run(events_file)
    events = [json.loads(line) for line in events_file.read_text().splitlines()]
    spans = [span for event in events if event["event"] == "worker_spans" for span in event["spans"]]
    updates = [span["end"] - span["start"] for span in spans if span["kind"] == "update"]
    responses = sum(event["responses"] for event in events if event["event"] == "batch_taken")
    tokens = sum(event["response_tokens"] for event in events if event["event"] == "batch_taken")
    per_update = (tokens + responses * gpu_work.PROMPT_TOKENS) / len(updates)
    return asdict(run) | {
        "step_median": statistics.median(run.step_seconds),
        # The first update of a run pays for kernels that are chosen then.
        "trainer_tokens_per_second": per_update / statistics.median(updates[1:]),
        "pause_seconds": statistics.median(s["end"] - s["start"] for s in spans if s["kind"] == "load_weights"),
    }


# What is wanted


def judge_versions(found: Mapping[str, Any]) -> list[Check]:
    """Installed or not; flash-attn may be missing, at a price."""
    missing = [name for name, version in found["packages"].items() if version is None and name != "flashinfer-python"]
    listed = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    return [
        Check(name="GPU", measured=f"{found['gpu']}, {found['memory_gb']:.0f} GB, CUDA {found['cuda']}"),
        Check(name="packages", measured=listed, wanted=f"no {missing[0]}" if missing else "all", passed=not missing),
        Check(
            name="flash-attn",
            measured="compiled" if found["flash_attention_compiled"] else "not compiled: sdpa, which is slower",
        ),
        Check(name="copy of 988 MB on the device", measured=f"{found['copy_seconds'] * 1e3:.2f} ms"),
    ]


def judge_work(found: Mapping[str, Any]) -> list[Check]:
    """Nothing is wanted of it."""
    return [Check(name="model", measured=f"{found['parameters'] / 1e6:.0f} M parameters, random, bf16")]


def judge_agreement(found: Mapping[str, Any]) -> list[Check]:
    """In bf16, whose rounding alone makes about 0.01; publications must not add to it."""
    before, after, unpublished = (found[name]["mean"] for name in ("before", "after", "unpublished"))
    gap = found["publication"] * 1e3
    return [
        Check(
            name="|Δ log-prob| engine, trainer: at first",
            measured=f"mean {before:.4f}, largest {found['before']['largest']:.3f}",
            wanted="mean below 0.02",
            passed=before < 0.02,
        ),
        Check(
            name="... after ten publications",
            measured=f"mean {after:.4f}, largest {found['after']['largest']:.3f} ({unpublished:.4f} unpublished)",
            wanted="mean below 0.02, as at first",
            passed=after < min(0.02, 2 * before + 0.002),
        ),
        Check(name="one publication", measured=f"{gap:.0f} ms, the trainer waits {found['send'] * 1e3:.0f} ms"),
        Check(
            name=f"engine paused for {found['bytes'] / 1e6:.0f} MB",
            measured=f"{found['pause'] * 1e3:.0f} ms",
            wanted="below 50 ms",
            passed=found["pause"] < 0.05,
        ),
    ]


def judge_run(max_staleness: int) -> Callable[[Mapping[str, Any]], list[Check]]:
    """Its bound holds; at K = 1 it is also fast enough."""

    def judge(found: Mapping[str, Any]) -> list[Check]:
        step, rate, age = found["step_median"], found["trainer_tokens_per_second"], found["max_age"]
        limited = max_staleness == 1
        return [
            Check(
                name=f"K = {max_staleness}: a step",
                measured=f"{step:.1f} s (generate {found['generate_seconds']:.1f}, train {found['train_seconds']:.1f})",
                wanted="below 9 s" if limited else "",
                passed=step < 9 if limited else None,
            ),
            Check(
                name="... trainer, tokens/s",
                measured=f"{rate:,.0f}",
                wanted="45,000 or more" if limited else "",
                passed=rate >= 45_000 if limited else None,
            ),
            Check(
                name="... largest policy age",
                measured=str(age),
                wanted=f"at most {max_staleness}",
                passed=age <= max_staleness,
            ),
            Check(name="... engine paused", measured=f"{found['pause_seconds'] * 1e3:.0f} ms while it shares the GPU"),
        ]

    return judge


def compare(found: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """What takes two parts to say."""
    if not {"versions", "agreement"} <= found.keys():
        return []
    copy, publication = found["versions"]["copy_seconds"], found["agreement"]["publication"]
    return [Check(name="a publication, in copies on the device", measured=f"{publication / copy:.0f}")]


PARTS = (
    Part(name="versions", limit=45, run=versions, judge=judge_versions),
    Part(name="work", limit=60, run=work, judge=judge_work),
    Part(name="agreement", limit=165, run=agreement, judge=judge_agreement),
    *(Part(name=f"k{k}", limit=150, run=run_of(k), judge=judge_run(k)) for k in (1, 0, 2)),
)


# Running it


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all is well, 1 when a check or a part failed, 2 when there is nothing to check."""
    options = _parser().parse_args(arguments)
    if options.part:
        return _run_part(options)
    if not Device(kind="cuda", threads=1).count():
        print(
            "gpu_check: there is no NVIDIA GPU here (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES is empty). Run it "
            "on a machine with one, after `make setup DEVICE=cuda`; without a GPU use `make quickstart`",
            file=sys.stderr,
        )
        return 2
    chosen = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    if unknown := set(chosen) - {part.name for part in PARTS}:
        names = ", ".join(part.name for part in PARTS)
        print(f"gpu_check: --parts: there is no {', '.join(sorted(unknown))}; choose among {names}", file=sys.stderr)
        return 2
    started = time.monotonic()
    checks: list[Check] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        for part in PARTS:
            if part.name in chosen:
                checks += _check(part, Path(scratch), options.budget - (time.monotonic() - started), found)
    checks += compare(found)
    print(f"\n{table(checks)}\n\n{time.monotonic() - started:.0f} s of {options.budget:g} s", flush=True)
    if options.json:
        result = {"seconds": time.monotonic() - started, "checks": [asdict(check) for check in checks], "parts": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if any(check.passed is False for check in checks) else 0


def _check(part: Part, folder: Path, left: float, found: dict[str, Any]) -> list[Check]:
    """Run a part in a process of its own; its figures go into ``found``."""
    limit = min(part.limit, left)
    print(f"{part.name} (at most {max(0.0, limit):.0f} s) ... ", end="", flush=True)
    started = time.monotonic()
    log = folder / f"{part.name}.log"
    output = folder / f"{part.name}.json"
    failure = "no time was left" if limit <= 0 else _run(part.name, folder, output, log, limit)
    print(f"{failure or 'done'} after {time.monotonic() - started:.0f} s", flush=True)
    if failure:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        print("\n".join(f"    {line}" for line in lines[-25:]), flush=True)
        return [Check(name=part.name, measured=failure, wanted="to finish", passed=False)]
    found[part.name] = json.loads(output.read_text(encoding="utf-8"))
    return part.judge(found[part.name])


def _run(name: str, folder: Path, output: Path, log: Path, limit: float) -> str:
    """Why a part's process failed, or nothing. None of its descendants is left."""
    from dapo_openrlhf.bench.stock.run import end_tree

    command = [sys.executable, "-m", "dapo_openrlhf.bench.gpu_check", "--part", name, "--folder", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # a Ray of its own
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*command, "--json", str(output)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not done within {limit:.0f} s"
        finally:
            end_tree(process)
    return f"failed with exit status {code}" if code else ""


def _run_part(options: argparse.Namespace) -> int:
    """In the part's own process."""
    (part,) = [part for part in PARTS if part.name == options.part]
    found = part.run(options.folder)
    options.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def table(checks: Sequence[Check]) -> str:
    """The checks as text."""
    verdict = {True: "ok", False: "FAILED", None: ""}
    rows = [("check", "measured", "wanted", "")]
    rows += [(check.name, check.measured, check.wanted, verdict[check.passed]) for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh",
        description="Check and measure an installation on one GPU, which engine and trainer share.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="for all parts (default 600)")
    parser.add_argument("--parts", metavar="A,B,...", help=f"only these of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
