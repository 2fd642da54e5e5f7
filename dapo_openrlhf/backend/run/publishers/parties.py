"""Participants of a weight sync between GPUs: named, called with deadlines, and asked what they do if one is late."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from dapo_openrlhf.backend.messages import WeightAck, WeightLayout
from dapo_openrlhf.backend.run.calls import PipelineTimeout, all_within
from dapo_openrlhf.pipeline.ports import Publication

ASKING_SECONDS = 10.0
"""Seconds that a late engine has to say what it is doing."""

SETTING = "async.publish_timeout"

FIRST = "trainer rank 0"


class Parties:
    """Trainer ranks and engine actors by name."""

    def __init__(self, ranks: Sequence[Any], engines: Sequence[Any], *, timeout: float) -> None:
        """``timeout``: seconds for each round of calls."""
        self.ranks = {f"trainer rank {index}": rank for index, rank in enumerate(ranks)}
        self.engines = {f"engine {index}": engine for index, engine in enumerate(engines)}
        self._timeout = timeout

    @property
    def first(self) -> Any:
        """Trainer rank 0."""
        return self.ranks[FIRST]

    async def layout(self) -> WeightLayout:
        """The tensors that a publication consists of."""
        layout: WeightLayout = await self.of_first(self.first.weight_layout.remote(), "listing the model's parameters")
        return layout

    async def of_first(self, call: ray.ObjectRef[Any], what: str) -> Any:
        """The answer of trainer rank 0. Raises as :func:`~dapo_openrlhf.backend.run.calls.all_within` does."""
        return (await self.of_ranks({FIRST: call}, what))[FIRST]

    async def of_ranks(self, calls: Mapping[str, ray.ObjectRef[Any]], what: str) -> dict[str, Any]:
        """Results by name, of calls in which no engine takes part."""
        results = await all_within([*calls.values()], [*calls], self._timeout, what, SETTING)
        return dict(zip(calls, results, strict=True))

    async def of_all(self, calls: Mapping[str, ray.ObjectRef[Any]], what: str) -> dict[str, Any]:
        """Results by name.

        Raises :class:`PipelineTimeout` naming the late actors and what each engine says it is doing.
        """
        try:
            return await self.of_ranks(calls, what)
        except PipelineTimeout as error:
            phases = await self._phases()
            lines = [str(error), *(f"  {name}: {phase}" for name, phase in phases.items())]
            raise PipelineTimeout("\n".join(lines)) from None

    async def _phases(self) -> dict[str, str]:
        """What each engine says it is doing."""
        return dict(zip(self.engines, await asyncio.gather(*map(_phase, self.engines.values())), strict=True))


async def _phase(engine: Any) -> str:
    async def answer() -> str:
        said: str = await engine.phase.remote()
        return said

    try:
        return await asyncio.wait_for(answer(), ASKING_SECONDS)
    except TimeoutError:
        return f"gives no answer within {ASKING_SECONDS:g} s: its process hangs"
    except RayError as error:
        return f"is gone ({type(error).__name__})"


def confirm(publication: Publication, acks: Mapping[str, WeightAck]) -> None:
    """Raise ``RuntimeError`` unless every engine has received exactly the weights that were sent."""
    for name, ack in acks.items():
        if (ack.version, ack.checksum) != (publication.version, publication.checksum):
            raise RuntimeError(
                f"{name} acknowledged version {ack.version} with checksum {ack.checksum:#018x}, but version "
                f"{publication.version} with checksum {publication.checksum:#018x} was sent: what it received is not what "
                "the trainer holds; run make gpu-check on that machine"
            )
