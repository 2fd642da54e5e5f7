"""What a run says that it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fakes import build

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.report.phases import Phases
from dapo_openrlhf.report.recorder import Recorder


def test_at_any_time_of_a_run_there_is_one_wait() -> None:
    waits: list[Callable[[], str]] = []
    said: list[str] = []

    @contextmanager
    def waiting_for(what: Callable[[], str]) -> Iterator[None]:
        waits.append(what)
        assert len(waits) == 1
        try:
            yield
        finally:
            said.append(what())
            waits.remove(what)

    async def main() -> None:
        log = EventLog(None, clock=asyncio.get_running_loop().time)
        recorder = Recorder(log, [Phases(waiting_for)], devices=2)
        await build(steps=2, max_staleness=0, batch_size=2, log=log).run()
        assert len(waits) == 1
        recorder.close()

    run_virtual(main())
    assert not waits
    batch = "a batch: {} groups are generated or scored now; of {} since the last step {} are kept"
    assert said[0] == "the start of Ray, the engines and the trainer"
    assert said[1] == batch.format(0, 2, 2)
    assert said[2:4] == [
        "the training of step 1", "the publication after step 1, or an evaluation or a checkpoint",
    ]  # fmt: skip
    assert said[5] == "the training of step 2"
