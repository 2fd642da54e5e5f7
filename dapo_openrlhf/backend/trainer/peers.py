"""The ranks that train together: their number, this rank's number, and reductions over all of them (torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch.distributed
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """All ranks, as seen from one of them. A single rank needs no process group."""

    count: int = 1
    rank: int = 0
    """The number of this rank, from 0."""

    @classmethod
    def joined(cls) -> Self:
        """The ranks of torch's default process group, which must have been formed."""
        return cls(count=torch.distributed.get_world_size(), rank=torch.distributed.get_rank())

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.count == 1

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place. Every rank must call it."""
        if not self.alone:
            torch.distributed.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """Take the maximum over all ranks, in place and element by element. Every rank must call it."""
        if not self.alone:
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor
