"""The table: which fault happens in which phase of a run, on which carrier of the weights, and how the run should end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

Fault = Literal["engine_killed", "engine_stopped", "reward_killed", "rank_killed", "terminated", "damaged"]
"""``killed`` is SIGKILL and ``stopped`` SIGSTOP, of one process; ``terminated`` is SIGTERM of the run, which is resumed;
before the resume of ``damaged`` its newest checkpoint loses half of a file."""

Phase = Literal["generating", "training", "publishing", "saving"]
Carrier = Literal["object_store", "gloo"]

GOES_ON = (0,)
RESUMED = (143, 0)

EXIT_CODES: Mapping[Fault, tuple[int, ...]] = {
    "engine_killed": GOES_ON,
    "engine_stopped": GOES_ON,
    "reward_killed": GOES_ON,
    "rank_killed": GOES_ON,
    "terminated": RESUMED,
    "damaged": RESUMED,
}
"""The exit codes that a run should have, the second one of the run that resumes it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One trial."""

    fault: Fault
    phase: Phase
    carrier: Carrier

    @property
    def name(self) -> str:
        """``fault/phase/carrier``."""
        return f"{self.fault}/{self.phase}/{self.carrier}"

    @property
    def exit_codes(self) -> tuple[int, ...]:
        """The exit codes that the run should have."""
        return EXIT_CODES[self.fault]


ROWS: tuple[Row, ...] = tuple(
    Row(fault, phase, carrier)
    for carrier, fault, phase in itertools.product(get_args(Carrier), get_args(Fault), get_args(Phase))
)

SHORT = ("engine_killed/publishing/object_store", "damaged/training/object_store")
"""The part that is among the tests."""


def chosen(patterns: tuple[str, ...]) -> Iterator[Row]:
    """The rows whose names match one of the patterns, such as ``engine_*/publishing/*``."""
    return (row for row in ROWS if any(fnmatchcase(row.name, pattern) for pattern in patterns))
