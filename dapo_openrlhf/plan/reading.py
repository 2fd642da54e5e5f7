"""Reads the run that a plan is made from, and says what its log lacks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.event_file import is_log
from dapo_openrlhf.pipeline.event_log import EventLogError, Logged, read_around
from dapo_openrlhf.plan.observed import Life, Step, lives, overlap, union
from dapo_openrlhf.plan.run_settings import RunSettings, config_beside, differences
from dapo_openrlhf.plan.unknown_lengths import fill_in

LEAST_STEPS = 4
"""A plan needs a life with so many finished steps."""
FEW_STEPS = 8
"""With fewer counted steps it is said that there are few."""
MOST_DAMAGED = 0.02
"""Largest share of the lines that may be damaged."""
TREND = 0.25
"""Relative change from the first to the second half of the counted steps from which on a run was not steady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """The part of a run that a plan is made from."""

    life: Life
    settings: RunSettings
    notes: tuple[str, ...]
    """Sentences on what the log lacks."""


def read_run(folder: Path) -> PlannedRun:
    """Read a run's folder. Raises :class:`ConfigError` where there is no run, or too little of one."""
    file = folder / "events.jsonl"
    if not is_log(file):
        raise ConfigError(f"{folder} is no run's folder: it has no events.jsonl")
    log, notes = _read(file)
    life, chosen = _choose(lives(log), file)
    config, missing = config_beside(folder)
    notes += [*chosen, *([missing] if missing else []), *(differences(life.begun, config) if config else [])]
    if config is not None and config.train.agent_func_path is not None:
        notes.append(
            "environments answered the rollouts, and the log does not tell their time from the engines': all of it is planned "
            "as the engines' work, so more engines gain less than this says"
        )
    if unknown := fill_in(life):
        notes.append(unknown)
    _keep_one_size(life)
    settings = RunSettings.of(life, config)
    notes += _doubts(life, settings)
    return PlannedRun(life=life, settings=settings, notes=tuple(notes))


def _read(file: Path) -> tuple[list[Logged], list[str]]:
    try:
        found = list(read_around(file))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    log = [one for one in found if isinstance(one, Logged)]
    damaged = [one for one in found if isinstance(one, EventLogError)]
    if len(damaged) > max(3, MOST_DAMAGED * len(found)):
        raise ConfigError(
            f"{file}: {len(damaged)} of {len(found)} lines are no events of this version; the first: {damaged[0]}"
        )
    notes = [f"{len(damaged)} damaged lines are left out; the first: {damaged[0]}"] if damaged else []
    return log, notes


def _choose(found: Sequence[Life], file: Path) -> tuple[Life, list[str]]:
    """The latest of the lives with most steps."""
    if not found:
        raise ConfigError(f"{file} holds no run: it does not say how the run began (run_started)")
    life = max(reversed(found), key=lambda one: len(one.steps))
    done = len(life.steps)
    if done < LEAST_STEPS or len(life.counted) < 2 or not life.groups:
        raise ConfigError(
            f"{file} is too short for a plan: {done} finished steps{' in its longest piece' if len(found) > 1 else ''}; "
            f"at least {LEAST_STEPS} are needed, and 2 (K + 1) or more are better"
        )
    notes = []
    if len(found) > 1:
        first, last = life.steps[0].batch.step + 1, life.steps[-1].batch.step + 1
        notes.append(
            f"the run began {len(found)} times (resumed, or with a new trainer); steps {first} to {last} are taken, the "
            "longest piece"
        )
    if life.half_done:
        notes.append("the last step was begun and not finished; it is not counted")
    return life, notes


def _keep_one_size(life: Life) -> None:
    """Leave out groups with another number of responses than most."""
    usual = Counter(len(group.lengths) for group in life.groups.values()).most_common(1)[0][0]
    life.groups = {number: group for number, group in life.groups.items() if len(group.lengths) == usual}


def _doubts(life: Life, settings: RunSettings) -> Iterator[str]:
    """Sentences on why the plan may be wrong."""
    counted = life.counted
    if len(counted) < FEW_STEPS:
        yield f"only {len(counted)} steps are counted, after {life.first} in which the queue filled: the intervals are wide"
    if len(life.steps) < 2 * (settings.max_staleness + 1):
        yield (
            f"the run never got steady: {len(life.steps)} steps at K = {settings.max_staleness}, whose queue needs "
            f"{settings.max_staleness + 1} to fill"
        )
    yield from _trends(life)
    window = counted[0].begin, counted[-1].end
    kinds = Counter(kind.split(" of ")[0] for span, kind in life.disturbances if overlap(span, [window]) > 0)
    if kinds:
        share = overlap(window, union(span for span, _ in life.disturbances)) / (window[1] - window[0])
        yield (
            f"during {share:.0%} of the counted time engines did something else ({', '.join(sorted(kinds))}): groups of that "
            "time are not fitted to, and no such thing is in the prediction"
        )
    if settings.shared and not _both_at_once(life, counted):
        yield (
            "engines and trainer share this machine or its devices and hardly worked at the same time in this run, so "
            "how much they slow each other is not known: figures for K > 0 are the best case"
        )
    stopped = len(life.given_up) + len(life.unfinished)
    if stopped > 0.1 * (stopped + len(life.groups)):
        yield (
            f"{stopped / (stopped + len(life.groups)):.0%} of the groups ended before they were generated; each counts as "
            "one of those that took longer"
        )
    if cut := sum(group.cut for group in life.groups.values()):
        yield f"{cut} groups were cut at their deadline; how long they would have become is not known, so they are left out"


def _trends(life: Life) -> Iterator[str]:
    """Sentences on what changed in the course of the counted steps."""
    measured: dict[str, Callable[[Step], float]] = {
        "seconds of a step": lambda step: step.seconds,
        "tokens of a response": lambda step: step.batch.response_tokens / step.batch.responses,
    }
    half = len(life.counted) // 2
    for name, value in measured.items():
        first, second = ([value(step) for step in part] for part in (life.counted[:half], life.counted[half:]))
        if min(len(first), len(second)) < 2:
            continue
        change = fmean(second) - fmean(first)
        error = math.sqrt(stdev(first) ** 2 / len(first) + stdev(second) ** 2 / len(second))
        if abs(change) > TREND * fmean(first) and abs(change) > 2.5 * error:
            yield (
                f"the run never got steady: the {name} went from {fmean(first):.3g} to {fmean(second):.3g} from the first "
                "to the second half of the counted steps, and the plan is for their mean"
            )


def _both_at_once(life: Life, counted: Sequence[Step]) -> bool:
    """Whether engines generated in a tenth of the time in the trainer."""
    begin = counted[0].begin
    generating = union((group.begin, group.end) for group in life.groups.values() if group.end > begin)
    training = [step.training for step in counted]
    return sum(overlap(window, generating) for window in training) > 0.1 * sum(end - start for start, end in training)
