"""Finds out whether the trainer's ranks are alive: a cheap question that each answers beside its work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerFailed
from dapo_openrlhf.backend.run.obituary import KILLED, cause_of_death
from dapo_openrlhf.backend.trainer.actor import WATCH
from dapo_openrlhf.pipeline.ports import TrainerLost

PULSE_SECONDS = 5.0
"""Seconds that a rank takes to answer; when its process dies in that time, the answer is an error at once."""

HUNG_SECONDS = 60.0
"""Seconds without an answer after which a rank hangs. A training step may be as long as it likes: it leaves the other
threads their turns."""

LOOK_SECONDS = 10.0
"""How long an answer is waited for at a time. A pause of the whole machine, however long, counts as one look."""

VMSTAT = Path("/proc/vmstat")
"""Linux's file with the number of processes that were killed for want of memory."""

Result = TypeVar("Result")


class RankWatch:
    """Watches a trainer's ranks."""

    def __init__(self, ranks: Sequence[Any]) -> None:
        self._ranks = ranks
        self._killed_for_memory = killed_for_memory()

    async def supervise(self) -> None:
        """Watch until cancelled. Raises :class:`TrainerLost` at most :data:`HUNG_SECONDS` after a rank died or hung."""
        asking = [asyncio.ensure_future(self._follow(rank)) for rank in range(len(self._ranks))]
        await _first_error(asking)

    async def told(self, work: Awaitable[Result]) -> Result:
        """The result of work with the ranks. Raises :class:`TrainerLost` in place of what its loss has caused.

        A rank that dies makes the calls of its peers and of the engines fail too, perhaps earlier. So after any error
        each rank is asked whether it is alive. If all are, the error is raised as it is, since it would come again.
        """
        try:
            return await work
        except (WorkerFailed, PipelineTimeout) as error:
            await self._look_for_loss(error)
            raise

    async def during(self, work: Awaitable[Result]) -> Result:
        """The same as :meth:`told`, watching the ranks meanwhile."""
        working, watching = asyncio.ensure_future(self.told(work)), asyncio.ensure_future(self.supervise())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                watching.result()
            return await working
        finally:
            await _end([working, watching])

    async def _look_for_loss(self, error: Exception) -> None:
        try:
            await _first_error([asyncio.ensure_future(self._ask(rank, 0.0)) for rank in range(len(self._ranks))])
        except TrainerLost as lost:
            raise TrainerLost(
                f"{_first_line(error)} ({lost})" if isinstance(error, PipelineTimeout) else str(lost)
            ) from error

    async def _follow(self, rank: int) -> None:
        while True:
            await self._ask(rank, PULSE_SECONDS)

    async def _ask(self, rank: int, seconds: float) -> None:
        """Return once a rank has answered, after ``seconds``. Raises :class:`TrainerLost`."""
        alive = self._ranks[rank].alive.options(concurrency_group=WATCH)
        call = asyncio.ensure_future(_result(alive.remote(seconds)))
        try:
            waited = -seconds
            while not call.done():
                if waited >= HUNG_SECONDS:
                    raise TrainerLost(f"trainer rank {rank} hangs: its process has not answered for {HUNG_SECONDS:g} s")
                look = min(LOOK_SECONDS, HUNG_SECONDS - waited)
                await asyncio.wait((call,), timeout=look)
                waited += look
            return call.result()
        except RayActorError as error:
            raise TrainerLost(f"trainer rank {rank} died: {self._cause(error)}") from error
        finally:
            call.cancel()

    def _cause(self, error: RayActorError) -> str:
        cause = cause_of_death(error)
        if cause == KILLED and killed_for_memory() > self._killed_for_memory:
            return "it was killed, and the kernel has killed processes for want of memory meanwhile"
        return cause


def killed_for_memory() -> int:
    """Number of processes on this machine that the kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


async def _result(call: ray.ObjectRef[Any]) -> None:
    await call


async def _first_error(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait until all tasks are done or one has failed, and raise its error."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
