"""The curves of a page: every number of the runs' rows, those that belong together in one chart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dapo_openrlhf.pipeline.metrics import LAPS, METRICS
from dapo_openrlhf.report.page.drawing import Line, chart
from dapo_openrlhf.report.page.past_run import PastRun

Names = Sequence[str]
EVALUATED = "eval/accuracy"

MONITORS: Mapping[str, Names] = {
    "Response length": ("response_length/mean",),
    "Reward": ("reward",),
    "Entropy": ("entropy",),
    "Mean probability": ("token_probability",),
}
"""What the paper watches (DAPO section 4.3), with the number that each chart shows."""
LEARNING: Mapping[str, Names] = {
    "Accuracy": ("accuracy", EVALUATED),
    "Pass rate": ("pass_rate",),
    "Truncated, cut": ("truncated_share", "cut_share"),
    "Clipped tokens": ("clip_fraction",),
}
STALENESS: Mapping[str, Names] = {
    "Policy age": ("policy_age/mean", "policy_age/max", "policy_age/token_mean"),
    "Stale tokens": ("stale_token_share",),
    "Importance weights": ("is_weight/mean", "is_weight/ess"),
    "KL(rollout || old)": ("rollout_kl",),
}
SPEED: Mapping[str, Names] = {
    "Idle share": ("idle_share/engines", "idle_share/trainer"),
    "Tokens per second": ("tokens_per_second/trained", "tokens_per_second/generated"),
    "Seconds per step": ("seconds/step",),
    "Publication, pause": ("seconds/publish", "seconds/engines_paused"),
}
TOGETHER = (MONITORS, LEARNING, STALENESS, SPEED)
REASONS = ("kept", "all_right", "all_wrong", "failed", "surplus", "cut")
AS_BARS = {*(f"seconds/{lap}" for lap in LAPS), *(f"groups/{reason}" for reason in REASONS)}
"""Numbers that are drawn as bars, besides the groups of each age."""
_AGE = re.compile(r"policy_age/(\d+)")


def charts(runs: Sequence[PastRun], group: Mapping[str, Names]) -> str:
    """A chart for each entry, with a line per run; further numbers of an entry are dashed."""
    return "".join(_chart(runs, title, names) for title, names in group.items())


def other_charts(runs: Sequence[PastRun]) -> str:
    """A chart for each number that no other chart of the page shows."""
    known = {name for group in TOGETHER for names in group.values() for name in names}
    found = dict.fromkeys(name for run in runs for row in run.rows.values() for name in row)
    order = [*METRICS, *sorted(set(found) - METRICS.keys())]
    names = [name for name in order if name in found and name not in known | AS_BARS and not _AGE.fullmatch(name)]
    return "".join(_chart(runs, name, (name,)) for name in names)


def ages_of(runs: Sequence[PastRun]) -> list[int]:
    """Every policy age that some run has trained."""
    names = {name for run in runs for row in run.rows.values() for name in row}
    return sorted(int(found[1]) for name in names if (found := _AGE.fullmatch(name)))


def _chart(runs: Sequence[PastRun], title: str, names: Names) -> str:
    lines = [line for place, run in enumerate(runs) for line in _lines(run, place, names)]
    unit = METRICS[names[0]].unit if names[0] in METRICS else ""
    dashed = [f"{('line', 'dashed', 'dotted')[dash]}: {name}" for dash, name in enumerate(names)]
    note = "; ".join(dashed) if len(names) > 1 else METRICS[names[0]].meaning if names[0] in METRICS else ""
    return chart(title, unit, lines, steps=max(run.steps for run in runs), note=note)


def _lines(run: PastRun, place: int, names: Names) -> list[Line]:
    return [
        Line(
            label=run.label if len(names) == 1 else f"{run.label} {name}",
            colour=place,
            dash=dash,
            points=_points(run, name),
            smoothed=name not in (EVALUATED, "policy_age/max"),
        )
        for dash, name in enumerate(names)
    ]


def _points(run: PastRun, name: str) -> list[tuple[float, float]]:
    """A number by steps done; evaluations are those of the event log, which has the one before the first step too."""
    if name == EVALUATED and run.evaluations:
        return [(step, one.accuracy) for step, one in sorted(run.evaluations.items()) if one.accuracy == one.accuracy]
    return [(step, row[name]) for step, row in sorted(run.rows.items()) if name in row]
