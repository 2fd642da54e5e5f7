"""Writes a few responses of every rollout step to a JSON-lines file (standard library only)."""

from __future__ import annotations

import json
from pathlib import Path

from dapo_openrlhf.pipeline.events import Event, ResponseSampled, Rewound, StepDone
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.whole_file import write_whole

LONGEST = 20_000
"""Characters of a prompt or response that are kept."""


class Samples(Sink):
    """Appends each sampled response as soon as it comes."""

    name = "the file of sample responses"

    def __init__(self, path: Path, *, first_step: int = 0) -> None:
        """``first_step``: number of rollout steps done before; samples of later ones are removed from the file."""
        self._path = path
        self._step = first_step
        keep_samples(path, first_step)
        self._file = path.open("a", encoding="utf-8")

    def event(self, event: Event) -> None:
        """Write a sample with the step in which it was scored, from 1; remove what a rewind has undone."""
        match event:
            case StepDone():
                self._step = event.step + 1
            case Rewound():
                self._file.close()
                keep_samples(self._path, event.to_step)
                self._file = self._path.open("a", encoding="utf-8")
                self._step = event.to_step
            case ResponseSampled():
                self._file.write(json.dumps(self._line(event)) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self, event: ResponseSampled) -> dict[str, object]:
        return {
            "step": self._step + 1,
            "prompt": event.prompt_text[:LONGEST],
            "label": event.label if isinstance(event.label, str | int | float | None) else str(event.label),
            "response": event.response[:LONGEST],
            "answer": event.answer,
            "correct": event.correct,
            "reward": event.reward,
            "characters": len(event.response),
        }


def keep_samples(path: Path, steps: int) -> None:
    """Remove the samples of later steps than the first ``steps`` from the file, and lines that are none."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        write_whole(path, "".join(line + "\n" for line in lines if _step_of(line) <= steps))


def _step_of(line: str) -> float:
    try:
        sample = json.loads(line)
    except (ValueError, RecursionError):
        return float("inf")
    step = sample.get("step") if isinstance(sample, dict) else None
    return step if isinstance(step, int) else float("inf")
