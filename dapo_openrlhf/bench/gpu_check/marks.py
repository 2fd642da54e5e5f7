"""What a healthy installation reaches on the card at hand, by arithmetic from what the card was measured to do alone.

The factors come from one H200 (docs/gpus.md), where everything worked: a range begins near what was measured there and
ends where something must be wrong. Time that Python spends does not depend on the card, so it counts per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dapo_openrlhf.bench.gpu_check.check import Check, Found

RELOAD_SECONDS_PER_TENSOR = (0.2e-3, 0.5e-3)
"""Of vLLM's layer by layer reload, in Python; 85 ms for 290 tensors were measured."""
COPIES_PER_PUBLICATION = 10.0
"""Copying out, checksums on both ends and copying in each read or write all weights."""
LINK_BYTES_PER_SECOND = 5e9
"""Of a broadcast between two GPUs: a quarter of what PCIe 4 carries, a hundredth of NVLink."""
FLOPS_PER_PARAMETER = 6.0
"""Per trained token: two in the forward pass, four in the backward pass."""
USED_SHARE = (0.2, 0.5)
"""Of the card's matrix product rate, by the updates of a 0.5 B model with sequences of 576 tokens; 0.25 was measured."""
SHARED_GAIN = (0.5, 0.85)
"""A step at K = 1 over one at K = 0, on one GPU that engine and trainer share; 0.61 was measured."""
APART_OVER_LONGER = (1.0, 1.25)
"""A step at K = 1 over the longer of generation and training alone, on a GPU each."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """From the best that is expected to the worst that passes; better than the best passes too."""

    best: float
    worst: float

    def passes(self, value: float) -> bool:
        """Whether a value is not beyond the worst."""
        return value <= self.worst if self.best <= self.worst else value >= self.worst


DECODE = Range(best=3.0, worst=15.0)
"""Milliseconds of one step of the engine with 256 sequences: launches and Python, since reading weights and KV cache takes
below 1 ms. 5.8 ms were measured in a plain process, 8.2 ms in an actor."""


def held_to(mark: Range | None, value: float, *, name: str, unit: str = "", digits: int = 0) -> Check:
    """A check that a mark decides; without one the figure is only shown."""
    measured = f"{value:,.{digits}f}{unit}"
    if mark is None:
        return Check(name=name, measured=measured)
    low, high = sorted((mark.best, mark.worst))
    expected = f"{low:,.{digits}f} to {high:,.{digits}f}{unit}"
    return Check(name=name, measured=measured, expected=expected, passed=mark.passes(value))


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card does when nothing else runs, and the model of the check."""

    copy_seconds_per_byte: float
    """Of a copy on the device."""
    flops: float
    """Floating point operations per second of a large matrix product in bf16."""
    parameters: int
    tensors: int
    bytes: int
    gpus: int

    @classmethod
    def of(cls, found: Found) -> Self | None:
        """The card and the model as the first two parts have found them; None if one of them has not run."""
        if not {"versions", "work"} <= found.keys():
            return None
        card, work = found["versions"], found["work"]
        return cls(
            copy_seconds_per_byte=card["copy_seconds"] / card["copy_bytes"],
            flops=card["flops"],
            parameters=work["parameters"],
            tensors=work["tensors"],
            bytes=work["bytes"],
            gpus=card["gpus"],
        )

    @property
    def pause(self) -> Range:
        """Milliseconds for which an engine generates nothing while it takes a publication, nothing else on its card."""
        copies = COPIES_PER_PUBLICATION * self.copy_seconds_per_byte * self.bytes
        moved = copies if self.gpus == 1 else copies + self.bytes / LINK_BYTES_PER_SECOND
        low, high = (seconds * self.tensors for seconds in RELOAD_SECONDS_PER_TENSOR)
        return Range(best=1e3 * low, worst=1e3 * (high + moved))

    @property
    def trainer_rate(self) -> Range:
        """Tokens per second of the trainer's updates, nothing else on its card."""
        low, high = (share * self.flops / (FLOPS_PER_PARAMETER * self.parameters) for share in USED_SHARE)
        return Range(best=high, worst=low)

    def overlapped_step(self, *, generate: float, train: float, step: float) -> Range:
        """Seconds of a step at K = 1, from those of K = 0: generation, training, and the whole step."""
        if self.gpus == 1:
            return Range(best=SHARED_GAIN[0] * step, worst=SHARED_GAIN[1] * step)
        longer = max(generate, train)
        return Range(best=APART_OVER_LONGER[0] * longer, worst=APART_OVER_LONGER[1] * longer)
