"""Ends a run at once when Ray itself dies.

Ray's own way takes 14 seconds after the death of its raylet and 61 after that of its GCS, and then ends the process from
C++, without a cause and without a chance to close anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from ray._private import worker

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""Seconds between two looks at Ray's processes."""
LEAVE_SECONDS = 3.0
"""Seconds for the run's loops to stop; what they ask of a dead Ray may never be answered."""
VITAL = {"gcs_server": "GCS, its central service,", "raylet": "raylet, the parent of the run's actors,"}
"""The processes without which nothing goes on, by Ray's names."""


class RayDied(RuntimeError):
    """A process of the run's own Ray cluster has ended, and with it the run."""


async def while_ray_lives(work: Awaitable[T]) -> T:
    """The result of ``work``. Raises :class:`RayDied` instead, soon after a vital process of Ray has ended.

    Of a joined cluster the processes are not known here.
    """
    running = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_death())
    say = worker.print_to_stdstream
    worker.print_to_stdstream = _without_autopsy(say)
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        for death in deaths():  # the error that the run ended with is then a consequence
            running.cancel()
            await asyncio.wait({running}, timeout=LEAVE_SECONDS)
            raise RayDied(death)
        return await running
    finally:
        worker.print_to_stdstream = say
        watching.cancel()
        running.cancel()


def _without_autopsy(say: Callable[..., None]) -> Callable[..., None]:
    """Ray's printing of errors, but for the counters of a dead raylet, which say nothing of the cause."""

    def say_others(error: Mapping[str, Any], **options: Any) -> None:
        if not error["lines"][0].startswith("Raylet is terminated"):
            say(error, **options)

    return say_others


async def _until_death() -> None:
    while not any(deaths()):
        await asyncio.sleep(LOOK_SECONDS)


def deaths() -> Iterator[str]:
    """A sentence for each vital process of this process's own cluster that has ended."""
    node = worker._global_node
    started: dict[str, Any] = node.all_processes if node is not None else {}
    for name, words in VITAL.items():
        for info in started.get(name, []):
            if (status := info.process.poll()) is not None:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                yield f"Ray's {words} {how} (process {info.process.pid}); perhaps the machine is out of memory (`dmesg` says so)"
