"""Sends a run's numbers to Weights & Biases (the package wandb, an extra that is imported only when it is asked for)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.events import Evaluated, Event
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.report.secrets import without_secrets

PINNED = "wandb==0.31.0"
ANSWER_SECONDS = 60.0
"""How long its server may take to accept the run, before training begins."""
FINISH_SECONDS = 120.0
"""How long the upload may take after the run's end; what is left is on disk, for ``wandb sync``."""
STEP = "step"
"""The axis of all curves: rollout steps done. It may go back, which Weights & Biases' own may not."""
ID_FILE = "run_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run appears at Weights & Biases."""

    uploads: bool
    """Whether numbers are sent at once, and not only written for ``wandb sync``."""
    project: str
    org: str | None
    group: str | None
    run_name: str


class WandbRun(Sink):
    """Logs every row and evaluation; a resumed run goes on in the same one."""

    name = "the run at Weights & Biases"

    def __init__(self, folder: Path, place: Place, settings: Mapping[str, object]) -> None:
        """``folder`` is made for its files. ``settings`` are shown with the run, without what may be a secret."""
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=str(folder),
            project=place.project,
            entity=place.org,
            group=place.group,
            name=place.run_name,
            id=_run_id(folder / ID_FILE),
            resume="allow",
            mode="online" if place.uploads else "offline",
            config=dict(_sections(settings)),
            settings=wandb.Settings(
                console="off",  # the terminal is the run's own
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,  # command line, user, machine
                x_save_requirements=False,
                init_timeout=ANSWER_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def event(self, event: Event) -> None:
        """Log an evaluation's estimates at the number of steps done."""
        if isinstance(event, Evaluated):
            estimates = {f"eval/{name}": value for name, value in event.estimates.items()}
            self._run.log({STEP: event.step, "eval/accuracy": event.accuracy, **estimates})

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Log a step's numbers at the number of steps done after it."""
        numbers = {name: value for name, value in row.items() if not name.startswith("eval/")}
        self._run.log({STEP: step + 1, **numbers})

    def close(self) -> None:
        """Wait until everything is sent, or written."""
        self._run.finish()


def _run_id(file: Path) -> str:
    """The identity of this run folder's run, which is made once."""
    if file.is_file() and re.fullmatch(r"[0-9a-f]{16}", known := file.read_text(encoding="utf-8", errors="replace")):
        return known
    file.write_text(made := secrets.token_hex(8), encoding="utf-8")
    return made


def _sections(settings: Mapping[str, object]) -> Mapping[str, object]:
    shown = without_secrets(settings)
    assert isinstance(shown, Mapping)
    return shown


def check_wandb(*, uploads: bool) -> None:
    """Refuse ``report.wandb`` before anything starts where it cannot work. Raises ``ConfigError`` with the remedy."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a mere folder of that name is what its runs leave
        mode = "online" if uploads else "offline"
        raise ConfigError(
            f"report.wandb: {mode} needs the package wandb, which is not installed: {sys.executable} -m pip install {PINNED}"
        )
    if uploads and (problem := _key_problem()):
        raise ConfigError(
            f"report.wandb: online {problem}; put a key into the environment as WANDB_API_KEY, or use report.wandb offline "
            "and `wandb sync` later"
        )


def _key_problem() -> str:
    """What is wrong with the key that wandb finds, in words that do not repeat it; empty if it has the form of one."""
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        found = wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:
        return f"finds a key of Weights & Biases that is none ({type(error).__name__})"
    return "" if found else "finds no key of Weights & Biases"
