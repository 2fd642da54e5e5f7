"""One trial: a run, a fault in one of its phases, the run that resumes it, and what became of both."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from dapo_openrlhf.bench.workload.workload import Workload
from scripts.chaos import faults
from scripts.chaos.ledger import Json, ledger_of
from scripts.chaos.life import LATEST, Life
from scripts.chaos.rows import Phase, Row
from scripts.chaos.run_log import SAVE_STEPS, RunLog

STEPS, GROUPS = 9, 4
"""Rollout steps of a run, and groups of each."""

POLL_SECONDS = 0.01
TOLD = ("engine_lost", "engine_replaced", "rewound", "trainer_replaced", "group_failed")
"""Events that say what a fault did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a trial."""

    row: str
    day: str
    """When it was tried, as ``2026-11-28``."""
    happened: str
    exit_codes: tuple[int, ...]
    """Exit codes of the run and of the one that resumed it; ``-9`` for one that was ended because it hung."""
    seconds_to_go_on: float | None
    """From the fault, or the start of the process that resumed the run, to the end of the next training; None if there was
    none."""
    steps_lost: int
    groups_trained: int
    problems: tuple[str, ...]
    """What is wrong with the ledger, and with what was left over."""
    passed: bool


def settings(row: Row, work: Workload, folder: Path) -> dict[str, Any]:
    """The settings of a trial's run, of tiny everything; the prompts are more than it can draw."""
    return {
        "device": "cpu",
        "run": {"name": "chaos", "dir": str(folder)},
        "actor": {"model_name_or_path": str(work.model), "lr_warmup_steps": 0},
        "ds": {"param_dtype": "fp32", "attn_implementation": "sdpa"},
        "vllm": {"sync_backend": row.carrier},
        "rollout": {"batch_size": GROUPS, "n_samples_per_prompt": 4, "max_new_tokens": work.max_new_tokens},
        "train": {"batch_size": GROUPS * 4, "max_steps": STEPS, "grace_seconds": LATEST},
        "ckpt": {"save_steps": SAVE_STEPS, "max_num": 3},
        "async": {"publish_timeout": 30.0},
        "reward": {"remote_url": str(work.reward), "overlong_filtering_enable": False},
        "data": {"prompt_dataset": str(work.prompts), "max_len": work.max_len},
    }


def try_row(row: Row, work: Workload, folder: Path) -> Result:
    """Do one trial in an empty folder."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(row, work, folder)))
    run = folder / "chaos"
    log = RunLog(run)
    life = Life(folder, folder / "first.log")
    family = _strike(row, life, log)
    struck = time.time()
    code, problems = life.end(family or [life.process])
    codes, happened = [code], []
    if code:
        happened.append(life.last_words().replace(f"{folder}/", ""))
    if code and family:
        if row.fault == "damaged":
            happened.append(faults.damage(run / "checkpoints"))
        life = Life(folder, folder / "second.log", "--resume", "auto")
        struck = life.started
        code, left = life.end([life.process])
        codes.append(code)
        problems += left
    log.follow()
    return _judge(row, tuple(codes), [*_told(log.events), *happened], problems, log, struck)


def _strike(row: Row, life: Life, log: RunLog) -> list[psutil.Process]:
    """Wait for the phase, hold the run in it, and put the fault into it.

    Returns the processes of the run before the fault, or none if the run ended, or hung, before it came to its phase.
    """
    holder, begin = faults.HOLDERS[row.phase]
    while _comes_to(begin, life, log):
        held = faults.hold(holder, life.process)
        log.follow()
        if log.in_phase(row.phase) or (row.phase != begin and _comes_to(row.phase, life, log)):
            family = life.family()
            faults.strike(row.fault, life.process)
            if (row.fault, holder) != ("engine_stopped", faults.ENGINE):
                faults.release(held)
            return family
        faults.release(held)  # it was too late for this step
    return []


def _comes_to(phase: Phase, life: Life, log: RunLog) -> bool:
    """Wait until the run is in the phase; false if it ends, or hangs, before."""
    latest = time.monotonic() + LATEST
    while not log.in_phase(phase):
        if life.ended:
            return False
        if time.monotonic() > latest:
            life.kill()
            return False
        time.sleep(POLL_SECONDS)
        log.follow()
    return True


def _judge(
    row: Row, codes: tuple[int, ...], happened: Sequence[str], problems: Sequence[str], log: RunLog, struck: float
) -> Result:
    ledger = ledger_of(log.events)
    wrong = (*problems, *ledger.problems)
    return Result(
        row=row.name,
        day=datetime.date.today().isoformat(),
        happened="; ".join(happened),
        exit_codes=codes,
        seconds_to_go_on=_seconds_to_go_on(log.events, struck),
        steps_lost=ledger.steps_lost,
        groups_trained=ledger.trained,
        problems=wrong,
        passed=codes == row.exit_codes and not wrong and ledger.trained == STEPS * GROUPS,
    )


def _told(events: Sequence[Json]) -> list[str]:
    counts = Counter(
        f"{event['event']} ({event['reason']})" if "reason" in event else event["event"]
        for event in events
        if event["event"] in TOLD
    )
    return [what.replace("_", " ") + (f" x {count}" if count > 1 else "") for what, count in counts.items()]


def _seconds_to_go_on(events: Sequence[Json], struck: float) -> float | None:
    began = 0.0
    for event in events:
        if event["event"] == "run_started":
            began = event["unix_time"]
        elif event["event"] == "step_trained" and began + event["time"] > struck:
            return float(began + event["time"] - struck)
    return None
