"""The runs that predictions are compared with: both kinds of work at several K, in turn."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dapo_openrlhf.bench.arm import ArmSettings
from dapo_openrlhf.bench.pipeline_arm import pipeline_arm
from dapo_openrlhf.bench.workload.chain import Category, Recipe
from dapo_openrlhf.bench.workload.chain_folder import chain_workload

RECIPES = {
    "tail": Recipe(),
    "even": Recipe(
        categories=(Category(mark="A", letters="abcdef", mean_length=400, share=1.0),), max_new_tokens=56, seed=1
    ),
}
"""Lengths with a heavy tail, 8 to 256 tokens, and lengths of which seven in eight are 56 tokens."""

LOAD = "load.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run in its folder."""

    work: str
    max_staleness: int
    repeat: int
    folder: Path

    @property
    def run(self) -> Path:
        """Folder of the run, with its event log."""
        return self.folder / "run"

    @property
    def done(self) -> bool:
        """Whether the run is finished: the load is noted last."""
        return (self.folder / LOAD).is_file()

    def load(self) -> tuple[float, float]:
        """The machine's load averages over one minute, before the run and at its end."""
        noted = json.loads((self.folder / LOAD).read_text())
        return noted["before"], noted["after"]


def trials(output: Path, *, works: Sequence[str], staleness: Sequence[int], repeats: int) -> list[Trial]:
    """All runs, interleaved so that changes on the machine affect every K alike."""
    return [
        Trial(work=work, max_staleness=k, repeat=repeat, folder=output / f"{work}-k{k}-{repeat}")
        for repeat in range(1, repeats + 1)
        for work in works
        for k in staleness
    ]


def measure(trial: Trial, *, steps: int, cache: Path, say: Callable[[str], None]) -> None:
    """Do one run unless it is done. Raises ``ArmError``."""
    if trial.done:
        return
    workload = chain_workload(cache / trial.work, RECIPES[trial.work])
    before = os.getloadavg()[0]
    arm = pipeline_arm(trial.max_staleness, workload, ArmSettings(steps=steps, max_epochs=2))
    found = arm.run(trial.folder)
    load = {"before": before, "after": os.getloadavg()[0], "measurement": asdict(found)}
    (trial.folder / LOAD).write_text(json.dumps(load, indent=2) + "\n")
    say(f"{trial.work}, K = {trial.max_staleness}: {found.seconds / len(found.step_seconds):.2f} s a step")
