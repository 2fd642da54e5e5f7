"""Turns a run's event log into a timeline: for Chrome's and Perfetto's trace viewers, and as a picture of a few steps.

There is one track per engine and per trainer rank (what it worked on; a gap is a bubble), one for publications, one for
the numbers of groups in flight and ready, and every group from dispatch to the filter's decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dapo_openrlhf.pipeline.event_log import EventLogError, Logged, read
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    GroupDispatched,
    GroupFailed,
    GroupJudged,
    GroupSurplus,
    PublicationLive,
    Rewound,
    RunStarted,
    StepDone,
    WorkerSpans,
)
from dapo_openrlhf.whole_file import whole_file

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

STEPS = (10, 12)
"""Steps that are drawn of a run that has as many: by then the queue is full."""


def read_log(file: Path) -> list[Logged]:
    """The events of a log; for a resumed run only those since it was resumed, when times begin at 0 again.

    Raises :class:`~dapo_openrlhf.pipeline.event_log.EventLogError`, also for a log in which no run begins.
    """
    log = list(read(file))
    begins = [number for number, logged in enumerate(log) if isinstance(logged.event, RunStarted)]
    if not begins:
        raise EventLogError(f"{file}: no run begins in it")
    return log[begins[-1] :]


def last_steps(log: Sequence[Logged]) -> tuple[int, int] | None:
    """The first and the last step to draw where none are named: :data:`STEPS`, or the last that were done; None without."""
    done = [logged.event.step for logged in log if isinstance(logged.event, StepDone)]
    if not done:
        return None
    return STEPS if min(done) < STEPS[0] and max(done) >= STEPS[1] else (max(min(done), max(done) - 2), max(done))


def worker_spans(log: Sequence[Logged]) -> list[tuple[str, str, float, float]]:
    """Tuples (worker, kind, start, end) of everything workers reported; times in seconds on the log's clock."""
    offset = next(logged.event.unix_time for logged in log if isinstance(logged.event, RunStarted))
    return [
        (span.worker, span.kind, span.start - offset, span.end - offset)
        for logged in log
        if isinstance(logged.event, WorkerSpans)
        for span in logged.event.spans
    ]


def chrome_trace(log: Sequence[Logged]) -> dict[str, Any]:
    """The log in the trace viewers' JSON format, in which times are microseconds."""
    spans = worker_spans(log)
    workers = sorted({worker for worker, *_ in spans})
    tracks = {name: number for number, name in enumerate([*workers, "publication"], start=1)}
    names = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in tracks.items()
    ]
    work = [_complete(kind, tracks[worker], start, end) for worker, kind, start, end in spans]
    return {"traceEvents": [*names, *work, *_from_events(log, tracks["publication"]), *_counters(log)]}


def _complete(name: str, track: int, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 1, "tid": track, "ts": start * 1e6, "dur": (end - start) * 1e6}


def _from_events(log: Iterable[Logged], publication: int) -> Iterator[dict[str, Any]]:
    in_flight: dict[int, None] = {}
    for logged in log:
        match logged.event:
            case GroupDispatched() as event:
                in_flight[event.group] = None
                yield _group("b", event.group, logged.time, {"version": event.version})
            case GroupJudged() | GroupFailed() as event:
                in_flight.pop(event.group, None)
                yield _group("e", event.group, logged.time, {"reason": event.reason})
            case GroupSurplus(response_tokens=0) as event:  # the others were judged before
                in_flight.pop(event.group, None)
                yield _group("e", event.group, logged.time, {"reason": "surplus"})
            case Rewound():
                yield from (_group("e", group, logged.time, {"reason": "rewound"}) for group in in_flight)
                in_flight.clear()
            case PublicationLive() as event:
                yield _complete(f"version {event.version}", publication, logged.time - event.seconds, logged.time)


def _group(phase: str, group: int, time: float, args: dict[str, Any]) -> dict[str, Any]:
    """The trace event of a group's begin or end."""
    return {
        "cat": "group", "id": group, "pid": 1, "ts": time * 1e6, "ph": phase, "name": f"group {group}", "args": args
    }  # fmt: skip


def _counters(log: Iterable[Logged]) -> Iterator[dict[str, Any]]:
    """Yield the numbers of groups in flight and ready whenever either changes."""
    in_flight: set[int] = set()
    ready: set[int] = set()
    for logged in log:
        match logged.event:
            case GroupDispatched() as event:
                in_flight.add(event.group)
            case GroupJudged() | GroupFailed() | GroupSurplus() as event:
                in_flight.discard(event.group)
                ready.discard(event.group)
                if isinstance(event, GroupJudged) and event.keep:
                    ready.add(event.group)
            case BatchTaken() as event:
                ready.difference_update(event.groups)
            case Rewound():
                in_flight.clear()
                ready.clear()
            case _:
                continue
        counts = {"in flight": len(in_flight), "ready": len(ready)}
        yield {"ph": "C", "name": "groups", "pid": 1, "ts": logged.time * 1e6, "args": counts}


def draw_timeline(log: Sequence[Logged], path: Path, *, first_step: int, last_step: int) -> None:
    """Draw a picture of rollout steps ``first_step`` to ``last_step`` (from 0, both included)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = {logged.event.step: logged.time for logged in log if isinstance(logged.event, StepDone)}
    if first_step not in done or last_step not in done or first_step > last_step:
        known = f"steps {min(done)} to {max(done)}" if done else "no step that was done"
        raise ValueError(f"{first_step} to {last_step} are not steps of the log, which has {known}")
    dispatched = next((logged.time for logged in log if isinstance(logged.event, GroupDispatched)), 0.0)
    begin, end = done.get(first_step - 1, dispatched), done[last_step]
    spans = [span for span in worker_spans(log) if span[3] > begin and span[2] < end]
    workers = sorted({worker for worker, *_ in spans})
    figure = Figure(figsize=(11, 0.6 * len(workers) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds = [kind for kind in COLOURS if any(span[1] == kind for span in spans)]
    for kind in kinds:
        for row, worker in enumerate(workers):
            bars = [(start - begin, stop - start) for w, k, start, stop in spans if (w, k) == (worker, kind)]
            axes.broken_barh(bars, (row - 0.35, 0.7), color=COLOURS[kind], label=kind if row == 0 else None)
    for logged in log:
        if isinstance(logged.event, PublicationLive) and begin <= logged.time <= end:
            axes.axvline(logged.time - begin, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(0, end - begin)
    axes.set_yticks(range(len(workers)), workers)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds; rollout steps {first_step} to {last_step}; dotted: new weights live")
    handles = [axes.broken_barh([(0, 0)], (0, 0), color=COLOURS[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="outside upper center", ncols=len(kinds), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format=path.suffix[1:].lower() or "png")
