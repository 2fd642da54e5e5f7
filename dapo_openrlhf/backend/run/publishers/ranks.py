"""The trainer's ranks as a weight sync uses them: listing tensors, and staging them in the object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import ray

from dapo_openrlhf.backend.messages import StagedWeights, WeightLayout
from dapo_openrlhf.backend.run.calls import all_within
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.types import PolicyVersion

SETTING = "async.publish_timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedCopy:
    """A version in the object store, which engines may load at any time."""

    publication: Publication
    layout: WeightLayout
    buckets: tuple[ray.ObjectRef[Any], ...]

    def named(self, version: PolicyVersion) -> Self:
        """The same weights as ``version``."""
        return replace(self, publication=replace(self.publication, version=version))


class Ranks:
    """All trainer ranks, in order."""

    def __init__(self, ranks: Sequence[Any], *, timeout: float) -> None:
        """``timeout``: seconds for each round of calls."""
        self.actors = tuple(ranks)
        self.timeout = timeout
        self._layout: WeightLayout | None = None

    @property
    def names(self) -> list[str]:
        """The ranks' names in messages."""
        return [f"trainer rank {index}" for index in range(len(self.actors))]

    async def layout(self) -> WeightLayout:
        """The tensors that a publication consists of."""
        if self._layout is None:
            call = self.actors[0].weight_layout.remote()
            (self._layout,) = await all_within(
                [call], self.names[:1], self.timeout, "listing the model's parameters", SETTING
            )
        return self._layout

    async def stage(self, what: str) -> StagedCopy:
        """Put the weights that the ranks hold into the object store. Raises as ``all_within`` does."""
        layout = await self.layout()
        # Called on all ranks before anything is waited for, so that each comes to its collectives in the same order.
        streams = [rank.export_weights.options(num_returns="streaming").remote() for rank in self.actors]
        exports = [_exported(stream) for stream in streams]
        (buckets, weights), *_ = await all_within(exports, self.names, self.timeout, what, SETTING)
        publication = Publication(version=PolicyVersion(weights.version), bytes=layout.bytes, checksum=weights.checksum)
        return StagedCopy(publication=publication, layout=layout, buckets=tuple(buckets))


async def _exported(stream: Any) -> tuple[list[ray.ObjectRef[Any]], StagedWeights | None]:
    """References to the buckets that a rank yields, and what it says of them; ranks but the first yield nothing."""
    references = [reference async for reference in stream]
    told: StagedWeights | None = await references.pop() if references else None  # raises what the rank has raised
    return references, told
