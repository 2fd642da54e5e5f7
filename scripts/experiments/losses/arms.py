"""The losses and corrections that are compared, and the table of what they came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from scripts.experiments.ablation.ladder import Rung
from scripts.experiments.ablation.measurement import read_trial
from scripts.experiments.ablation.result import Spread
from scripts.experiments.ablation.trials import Trial

PERCENT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One loss or correction: what it sets on top of the configuration."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def at_age(self, age: int) -> Rung:
        """The arm with ``async.max_staleness`` = ``age``, as a row of trials."""
        return Rung(name=f"{self.name}-k{age}", title=f"{self.name}, K = {age}", paper=0, key="")


_BY_RESPONSE = {"actor.loss_agg_mode": "seq-mean-token-mean"}

ARMS = (
    Arm(name="uncorrected", settings={"algo.advantage.is_correction_level": "off"}),
    Arm(name="tis"),
    Arm(name="icepop", settings={"algo.advantage.is_correction": "icepop"}),
    Arm(name="mis", settings={"algo.advantage.is_correction": "mis"}),
    Arm(name="m2po", settings={"algo.advantage.is_correction": "m2po"}),
    Arm(name="interpolate", settings={"async.old_logprobs": "interpolate"}),
    Arm(name="scaled-lr", settings={"async.scale_lr": True}),
    Arm(name="cispo", settings={"actor.policy_loss_type": "cispo"}),
    Arm(name="dppo-tv", settings={"actor.policy_loss_type": "dppo_tv"}),
    Arm(name="sapo", settings={"actor.policy_loss_type": "sapo"}),
    Arm(
        name="gspo",
        settings={**_BY_RESPONSE, "actor.policy_loss_type": "gspo", "actor.eps_clip_low_high": [3e-4, 4e-4]},
    ),
    Arm(
        name="gmpo",
        settings={**_BY_RESPONSE, "actor.policy_loss_type": "gmpo", "actor.eps_clip_low_high": [0.33, 0.49]},
    ),
)
"""All compared; ``tis`` is the configuration as it is."""


def choose_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, in order; all for no name. Raises :class:`ConfigError`."""
    known = [arm.name for arm in ARMS]
    for name in names:
        if name not in known:
            raise ConfigError(f"--arms {name}: there is no such arm; there are {', '.join(known)}")
    return tuple(arm for arm in ARMS if not names or arm.name in names)


def table_text(trials: Sequence[Trial], arms: Sequence[Arm], ages: Sequence[int]) -> str:
    """Markdown: a row per arm, a column per age; what did not come to its end is counted."""
    lines = ["| loss or correction | " + " | ".join(f"K = {age}" for age in ages) + " |", "|---|" + "--:|" * len(ages)]
    for arm in arms:
        cells = [_cell([trial for trial in trials if trial.rung == arm.at_age(age)]) for age in ages]
        lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "% right on held-out problems at the end, mean over seeds ± their standard deviation; (finished of all).",
    ]
    return "\n".join(lines) + "\n"


def _cell(trials: Sequence[Trial]) -> str:
    finals = [read_trial(trial.run, trial.seed).final for trial in trials if trial.finished]
    measured = [final for final in finals if math.isfinite(final)]
    if not measured:
        return f"(0 of {len(trials)})"
    spread = Spread.of(measured)
    deviation = "" if math.isnan(spread.deviation) else f" ± {spread.deviation * PERCENT:.1f}"
    count = "" if len(measured) == len(trials) else f" ({len(measured)} of {len(trials)})"
    return f"{spread.mean * PERCENT:.1f}{deviation}{count}"
