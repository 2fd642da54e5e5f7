"""Writes rows as TensorBoard scalars and sample responses as its texts, without TensorFlow and PyTorch."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_openrlhf.pipeline.events import Evaluated, Event, ResponseSampled, Rewound, StepDone
from dapo_openrlhf.pipeline.metrics import METRICS, Row
from dapo_openrlhf.report.recorder import Sink

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

CHARTS = {
    "Learning": {
        "accuracy": ("accuracy", "eval/accuracy"),
        "reward": ("reward",),
        "entropy (nats per token)": ("entropy",),
        "response length (tokens)": ("response_length/mean", "response_length/max"),
    },
    "Staleness": {
        "policy age (versions)": ("policy_age/mean", "policy_age/max", "policy_age/token_mean"),
        "importance weights": ("is_weight/mean", "is_weight/ess", "is_weight/outside"),
        "KL(rollout || old) (nats per token)": ("rollout_kl",),
    },
    "Throughput": {
        "tokens per second": (
            "tokens_per_second/generated",
            "tokens_per_second/kept",
            "tokens_per_second/trained",
        ),
        "seconds": ("seconds/step", "seconds/wait_batch", "seconds/train", "seconds/publish"),
        "idle share": ("idle_share/engines", "idle_share/trainer"),
        "groups per step": ("groups/kept", "groups/all_right", "groups/all_wrong", "groups/failed"),
    },
}
"""Contents of the tab "Custom Scalars": section -> chart -> names of the numbers that are drawn together in it."""

LONGEST = 10_000
"""Characters of a sample that are written."""


class TensorBoardSink(Sink):
    """Writes rows to one event file of its own in a folder.

    Tags are the rows' names unchanged, so TensorBoard groups them by the part before the slash; each has its meaning
    and unit from :data:`METRICS` as its description. Lines that belong together share a chart in "Custom Scalars".
    Every row is flushed, so a run that dies leaves complete curves.
    """

    name = "the events for TensorBoard"

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        """Create ``folder`` where it is missing, and a new event file in it.

        ``first_step``: number of rollout steps that an earlier run has done; what it wrote beyond them is no longer
        shown.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        path = folder / f"events.out.tfevents.{now // 10**9:010}.{now % 10**9:09}.{os.getpid()}"
        self._writer = RecordWriter(path.open("xb"))
        self._event = Event
        self._described: set[str] = set()
        self._steps = first_step
        self._record(file_version="brain.Event:2")
        if first_step:
            self._begin_after(first_step)
        self._record(summary=_layout())

    def event(self, event: Event) -> None:
        """Add an evaluation's estimates at the number of steps done, and a sample at its step, from 1; stop showing what a
        rewind has undone."""
        if isinstance(event, Rewound):
            self._begin_after(event.to_step)
            self._steps = event.to_step
        if isinstance(event, StepDone):
            self._steps = event.step + 1
        if isinstance(event, ResponseSampled):
            self._record(step=self._steps + 1, summary=_text("samples", _sample(event)))
        if isinstance(event, Evaluated):
            estimates = {f"eval/{name}": value for name, value in event.estimates.items()}
            self.write(event.step, {"eval/accuracy": event.accuracy, **estimates})

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Add a step's numbers at the number of steps done after it."""
        self.write(step + 1, {name: value for name, value in row.items() if not name.startswith("eval/")})

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Add every number of ``row`` at ``step``."""
        self._record(step=step, summary=self._summary(row))

    def close(self) -> None:
        """Close the file; nothing may be written afterwards."""
        self._writer.close()

    def _begin_after(self, steps: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._record(step=steps + 1, session_log=SessionLog(status=SessionLog.START))

    def _summary(self, row: Mapping[str, float]) -> Summary:
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary()
        for name, number in row.items():
            value = summary.value.add(tag=name, simple_value=number)
            if name in METRICS and name not in self._described:
                value.metadata.summary_description = f"{METRICS[name].meaning} ({METRICS[name].unit})"
                self._described.add(name)
        return summary

    def _record(self, **fields: object) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()


def _layout() -> Summary:
    """:data:`CHARTS` in the form that TensorBoard's custom scalars plugin reads."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    layout = layout_pb2.Layout()
    for section, charts in CHARTS.items():
        category = layout.category.add(title=section)
        for title, names in charts.items():
            tags = [f"^{name}$" for name in names]
            category.chart.add(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
    summary = Summary()
    summary.value.add(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    return summary


def _text(tag: str, text: str) -> Summary:
    """A text in the form that TensorBoard's text plugin reads."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    summary = Summary()
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    tensor = make_tensor_proto(text.encode("utf-8", errors="replace"))
    summary.value.add(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
    return summary


def _sample(event: ResponseSampled) -> str:
    """A sample as Markdown in which prompt and response are quoted, whatever is in them."""
    quoted = "\n".join(f"    {line}" for line in f"{event.prompt_text}\n{event.response}"[:LONGEST].splitlines())
    verdict = "right" if event.correct else "wrong"
    return f"{verdict}, reward {event.reward:+.3g}, label {str(event.label)[:200]!r}\n\n{quoted}"
