"""Sums of one update, and whether all its numbers are finite (torch; runs inside the trainer's ranks).

Everything stays on the device until the update's last backward pass. Then the ranks add up their counts and each reads
everything at once: one synchronisation and one collective of a few numbers per update, whatever the number of
micro-batches.
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
"""Names of the quantities that are checked; the same on every rank, whichever of them the rank has."""

SUFFIX = "gradient norm"
"""The ending of the names of gradient norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The numbers of one update; :attr:`not_finite` is the same on every rank."""

    not_finite: Mapping[str, int]
    """How many numbers over all ranks were not finite, by name; empty for an update that may be applied."""
    sums: Mapping[str, float]
    """This rank's sums over trained tokens."""
    norms: Mapping[str, float]
    """Gradient norms over all ranks, before clipping."""

    @property
    def sound(self) -> bool:
        """Whether the optimizers may apply the update."""
        return not self.not_finite

    @property
    def overflow(self) -> bool:
        """Whether only gradients are not finite, which with a loss scale may be due to the scale."""
        return bool(self.not_finite) and all(name.endswith(SUFFIX) for name in self.not_finite)


class Tally:
    """Collects the numbers of one update on one rank."""

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
        """Count the values that are not finite, only where ``where`` is not 0 if it is given."""
        bad = ~torch.isfinite(values.detach())
        if where is not None:
            bad = bad & where.bool()
        self._not_finite[name] = self._not_finite[name] + bad.sum()

    def norm(self, name: str, value: Tensor) -> None:
        """Record a gradient norm, which is the same on every rank, and check it."""
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
