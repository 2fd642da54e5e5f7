"""The event log of a run that is being written, and the moment in it at which a phase begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.chaos.rows import Phase

STEP = 4
"""The rollout step, from 0, in which faults happen; there is a checkpoint of an earlier one by then."""

SAVE_STEPS = 2
UNFINISHED = ".unfinished-"
"""How the name of a checkpoint begins that is being written."""


class RunLog:
    """Follows the event log of a run in its folder, which the run makes."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._read = 0
        self.events: list[dict[str, Any]] = []
        """All events so far."""

    def follow(self) -> None:
        """Read what has been written since the last call."""
        file = self._run / "events.jsonl"
        if not file.exists():
            return
        with file.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self.events.append(json.loads(line))

    def in_phase(self, phase: Phase) -> bool:
        """Whether the run is in the phase, in step :data:`STEP` or later, as far as the events read so far tell."""
        trained = self._newest("step_trained", "step")
        if trained < STEP - 1:
            return False
        match phase:
            case "generating":
                ended = {e["group"] for e in self.events if e["event"] in ("group_generated", "group_failed")}
                return any(e["event"] == "group_dispatched" and e["group"] not in ended for e in self.events)
            case "training":
                return self._newest("batch_taken", "step") > trained
            case "publishing":
                return self._newest("publication_live", "version") <= trained
            case "saving":
                return any((self._run / "checkpoints").glob(f"{UNFINISHED}*"))

    def _newest(self, event: str, number: str) -> int:
        return max((e[number] for e in self.events if e["event"] == event), default=-1)
