"""Log-probabilities over the tokens that a sampler kept (torch; runs inside the trainer's ranks).

Legend: R rows of logits, V tokens of the vocabulary, M tokens in the sets of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dapo_openrlhf.backend.kept_tokens import KeptTokens


@dataclass(frozen=True, slots=True)
class Kept:
    """The set of tokens of each of R rows, one after the other."""

    ids: Tensor
    """[M] int32 token ids."""
    counts: Tensor
    """[R] int64 number of tokens of each row's set, at least 1."""
    largest: int
    """Number of tokens of the largest set."""

    @classmethod
    def of(cls, sets: KeptTokens, *, device: torch.device) -> Kept:
        """The unpacked sets."""
        counts = torch.from_numpy(sets.counts).long()
        return cls(torch.from_numpy(sets.ids()).to(device), counts.to(device), int(counts.max()))

    def split(self, rows: int) -> list[Kept]:
        """The sets of each ``rows`` rows."""
        counts = torch.split(self.counts, rows)
        parts = torch.split(self.ids, [int(part.sum()) for part in counts])
        return [Kept(ids, part, self.largest) for ids, part in zip(parts, counts, strict=True)]

    def at(self, rows: Tensor) -> Kept:
        """The sets of rows by their indices."""
        counts, starts = self.counts[rows], (self.counts.cumsum(0) - self.counts)[rows]
        first = counts.cumsum(0) - counts
        index = torch.arange(int(counts.sum()), device=rows.device) + (starts - first).repeat_interleave(counts)
        return Kept(self.ids[index], counts, self.largest)

    def logprobs(
        self, logits: Tensor, targets: Tensor, temperature: float, *, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [R] of targets [R] among the sets, and entropies [R] of the distribution over the sets.

        Only the sets' logits are ever in float32. ``logits`` [R, V] are before the division by ``temperature``.
        """
        rows = torch.arange(len(self.counts), device=logits.device).repeat_interleave(self.counts)
        kept = logits.flatten().index_select(0, rows * logits.shape[-1] + self.ids).float() / temperature
        zeros = kept.new_zeros(len(self.counts))
        top = zeros.scatter_reduce(0, rows, kept.detach(), "amax", include_self=False)
        kept = kept - top[rows]
        log_normaliser = zeros.index_add(0, rows, kept.exp()).log()
        chosen = logits.gather(-1, targets[:, None]).squeeze(-1).float() / temperature - top
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            shares = (kept - log_normaliser[rows]).exp()
            entropies = log_normaliser - zeros.index_add(0, rows, shares * kept)
        return chosen - log_normaliser, entropies
