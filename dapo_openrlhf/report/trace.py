"""A run's event log as a timeline: for Chrome's and Perfetto's trace viewers, and as a picture of a few steps.

One track per engine and per trainer rank (what it worked on; a gap is a bubble), one for publications, one that counts
the groups in each place, and every group from dispatch to verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LogLine = Mapping[str, Any]
"""One line of ``events.jsonl``."""

COLOURS = {
    "generate": "#0072b2",
    "load_weights": "#d55e00",
    "update": "#009e73",
    "update_critic": "#00664a",
    "old_logprobs": "#56b4e9",
    "ref_logprobs": "#9ad1f2",
    "values": "#b8e0d2",
    "fetch": "#999999",
    "export_weights": "#e69f00",
    "save": "#cc79a7",
}


def read_log(file: Path) -> list[LogLine]:
    """The lines of an event log; of a run that was resumed, those since then: their times begin at 0 again.

    A run that was killed, or still goes on, may have written a part of the next line.
    """
    *whole, _ = file.read_text(encoding="utf-8").split("\n")
    lines = [json.loads(line) for line in whole]
    begins = [number for number, line in enumerate(lines) if line["event"] == "run_started"]
    return lines[begins[-1] :] if begins else lines


def worker_spans(lines: Sequence[LogLine]) -> list[tuple[str, str, float, float]]:
    """(worker, kind, start, end) of everything workers reported; times in seconds on the log's clock."""
    offset = next(line["unix_time"] for line in lines if line["event"] == "run_started")
    return [
        (span["worker"], span["kind"], span["start"] - offset, span["end"] - offset)
        for line in lines
        if line["event"] == "worker_spans"
        for span in line["spans"]
    ]


def chrome_trace(lines: Sequence[LogLine]) -> dict[str, Any]:
    """The log in the trace viewers' JSON format; times there are microseconds."""
    spans = worker_spans(lines)
    workers = sorted({worker for worker, *_ in spans})
    tracks = {name: number for number, name in enumerate([*workers, "publication"], start=1)}
    names = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in tracks.items()
    ]
    work = [_complete(kind, tracks[worker], start, end) for worker, kind, start, end in spans]
    return {"traceEvents": [*names, *work, *_from_lines(lines, tracks["publication"]), *_counters(lines)]}


def _complete(name: str, track: int, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 1, "tid": track, "ts": start * 1e6, "dur": (end - start) * 1e6}


def _from_lines(lines: Iterable[LogLine], publication: int) -> Iterator[dict[str, Any]]:
    for line in lines:
        group = {"cat": "group", "id": line.get("group"), "pid": 1, "ts": line["time"] * 1e6}
        match line["event"]:
            case "group_dispatched":
                yield group | {"ph": "b", "name": f"group {line['group']}", "args": {"version": line["version"]}}
            case "group_judged" | "group_failed":
                yield group | {"ph": "e", "name": f"group {line['group']}", "args": {"reason": line["reason"]}}
            case "group_surplus" if line["response_tokens"] == 0:  # the others were judged before
                yield group | {"ph": "e", "name": f"group {line['group']}", "args": {"reason": "surplus"}}
            case "publication_live":
                start = line["time"] - line["seconds"]
                yield _complete(f"version {line['version']}", publication, start, line["time"])


def _counters(lines: Iterable[LogLine]) -> Iterator[dict[str, Any]]:
    """Groups in flight and ready, whenever either changes."""
    in_flight: set[int] = set()
    ready: set[int] = set()
    for line in lines:
        match line["event"]:
            case "group_dispatched":
                in_flight.add(line["group"])
            case "group_judged" | "group_failed" | "group_surplus":
                in_flight.discard(line["group"])
                ready.discard(line["group"])
                if line.get("keep"):
                    ready.add(line["group"])
            case "batch_taken":
                ready.difference_update(line["groups"])
            case _:
                continue
        counts = {"in flight": len(in_flight), "ready": len(ready)}
        yield {"ph": "C", "name": "groups", "pid": 1, "ts": line["time"] * 1e6, "args": counts}


def draw_timeline(lines: Sequence[LogLine], path: Path, *, first_step: int, last_step: int) -> None:
    """A picture of rollout steps ``first_step`` to ``last_step`` (from 0, both included)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = {line["step"]: line["time"] for line in lines if line["event"] == "step_done"}
    if first_step - 1 not in done or last_step not in done:
        raise ValueError(f"steps {first_step} to {last_step} are not within the log's steps 1 to {max(done)}")
    begin, end = done[first_step - 1], done[last_step]
    spans = [span for span in worker_spans(lines) if span[3] > begin and span[2] < end]
    workers = sorted({worker for worker, *_ in spans})
    figure = Figure(figsize=(11, 0.6 * len(workers) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds = [kind for kind in COLOURS if any(span[1] == kind for span in spans)]
    for kind in kinds:
        for row, worker in enumerate(workers):
            bars = [(start - begin, stop - start) for w, k, start, stop in spans if (w, k) == (worker, kind)]
            axes.broken_barh(bars, (row - 0.35, 0.7), color=COLOURS[kind], label=kind if row == 0 else None)
    for line in lines:
        if line["event"] == "publication_live" and begin <= line["time"] <= end:
            axes.axvline(line["time"] - begin, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(0, end - begin)
    axes.set_yticks(range(len(workers)), workers)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds; rollout steps {first_step} to {last_step}; dotted: new weights live")
    handles = [axes.broken_barh([(0, 0)], (0, 0), color=COLOURS[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="outside upper center", ncols=len(kinds), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
