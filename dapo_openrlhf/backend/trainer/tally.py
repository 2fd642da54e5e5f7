"""What one update adds up, and whether all its numbers are finite (torch; runs inside the trainer's ranks).

Everything stays on the device until the update's last backward pass; then ranks add up their counts and each reads all of
it at once: one synchronisation and one collective of a few numbers an update, however many micro-batches it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dapo_openrlhf.backend.trainer.peers import Peers

LOOKED_AT = (
    "rewards or advantages",
    "rollout log-probs",
    "log-probs",
    "loss",
    "gradient norm",
    "critic loss",
    "critic gradient norm",
)
"""What is looked at; the same on every rank, whatever it has of it."""

SUFFIX = "gradient norm"
"""How the names of gradient norms end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of an update's numbers; :attr:`not_finite` is the same on every rank."""

    not_finite: Mapping[str, int]
    """How many numbers over all ranks were not finite, by name; empty for an update that may be stepped."""
    sums: Mapping[str, float]
    """This rank's sums over trained tokens."""
    norms: Mapping[str, float]
    """Gradient norms over all ranks, before clipping."""

    @property
    def sound(self) -> bool:
        """Whether the optimizers may have it."""
        return not self.not_finite

    @property
    def overflow(self) -> bool:
        """Whether nothing but gradients is not finite: with a loss scale that may be the scale's fault."""
        return bool(self.not_finite) and all(name.endswith(SUFFIX) for name in self.not_finite)


class Tally:
    """One update on one rank."""

    def __init__(self, device: torch.device, peers: Peers) -> None:
        self._device = device
        self._peers = peers
        self._sums: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._not_finite = {name: torch.zeros((), dtype=torch.float64, device=device) for name in LOOKED_AT}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's sums."""
        for name, value in sums.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def look(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Count the values that are not finite; only ``where`` it is not 0."""
        bad = ~torch.isfinite(values.detach())
        if where is not None:
            bad = bad & where.bool()
        self._not_finite[name] = self._not_finite[name] + bad.sum()

    def norm(self, name: str, value: Tensor) -> None:
        """Note a gradient norm, which is the same on every rank, and look at it."""
        self._norms[name] = value.detach().to(self._device).double()
        self.look(name, self._norms[name])

    def close(self) -> Verdict:
        """Add up the counts over all ranks and read everything. Every rank must call it."""
        counts = self._peers.total(torch.stack([self._not_finite[name] for name in LOOKED_AT]))
        own = [*self._norms.values(), *self._sums.values()]
        numbers = torch.cat([counts, torch.stack(own)]).tolist() if own else counts.tolist()
        found = dict(zip(LOOKED_AT, numbers, strict=False))
        read = dict(zip([*self._norms, *self._sums], numbers[len(LOOKED_AT) :], strict=True))
        return Verdict(
            not_finite={name: round(count) for name, count in found.items() if count},
            sums={name: read[name] for name in self._sums},
            norms={name: read[name] for name in self._norms},
        )
