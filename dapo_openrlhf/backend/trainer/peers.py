"""The ranks that train together: how many they are, which one this is, and what they add up (torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch.distributed
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """One rank's view of all of them. Alone it needs no process group."""

    count: int = 1
    rank: int = 0
    """This one's number, from 0."""

    @classmethod
    def joined(cls) -> Self:
        """Those of torch's default process group, which must have been formed."""
        return cls(count=torch.distributed.get_world_size(), rank=torch.distributed.get_rank())

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.count == 1

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in the tensor itself. Every rank must call it."""
        if not self.alone:
            torch.distributed.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of all ranks, in the tensor itself, element by element. Every rank must call it."""
        if not self.alone:
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor
