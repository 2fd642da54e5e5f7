"""What held a run back, in one sentence, from how long engines and trainer were idle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dapo_openrlhf.pipeline.metrics import WARM_UP_SHARE, Row

ENGINES, TRAINER, AGE = "idle_share/engines", "idle_share/trainer", "policy_age/mean"

BUSY = 0.15
"""Largest share of idle time of a side that counts as busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Idle shares, 0 to 1, and the sentence that follows from them."""

    engines_idle: float
    trainer_idle: float
    sentence: str


def verdict(rows: Sequence[Row], *, max_staleness: int) -> Verdict | None:
    """What limited the run of these steps; None where too few of them have both shares."""
    counted = [row for row in rows[int(WARM_UP_SHARE * len(rows)) :] if {ENGINES, TRAINER, AGE} <= row.keys()]
    if len(counted) < 2:
        return None
    mean: Mapping[str, float] = {name: fmean(row[name] for row in counted) for name in (ENGINES, TRAINER, AGE)}
    engines, trainer = mean[ENGINES], mean[TRAINER]
    found = (
        f"engines were idle {engines:.0%} of the time and the trainer {trainer:.0%}, at a mean age of {mean[AGE]:.2f}"
    )
    return Verdict(
        engines_idle=engines,
        trainer_idle=trainer,
        sentence=f"{found}: {_cause(engines, trainer, max_staleness)}",
    )


def _cause(engines: float, trainer: float, max_staleness: int) -> str:
    """What the idle shares say, and what to try: no K makes a step shorter than the busier side's work."""
    larger = f"a larger K saves at most {min(engines, trainer):.0%} of a step"
    match engines > BUSY, trainer > BUSY:
        case False, False:
            return f"both work nearly all the time; {larger}, faster or more devices save more"
        case True, False:
            return f"the trainer limits; {larger}, more trainer ranks or fewer engines save more"
        case False, True:
            return f"the engines limit; {larger}, more engines or fewer trainer ranks save more"
        case _ if max_staleness == 0:
            return "they work in turn, as K = 0 demands; async.max_staleness 1 lets them overlap"
        case _:
            more = f"async.max_staleness {max_staleness + 1}"
            return f"they wait for each other's stragglers; {more} or async.at_deadline cut will help"
