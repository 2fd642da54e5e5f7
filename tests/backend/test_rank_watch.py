"""Whether ranks are alive: asked of fake actors, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_actors import FakeActor
from fakes import some_group
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from dapo_openrlhf.backend.run import rank_watch
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerFailed
from dapo_openrlhf.backend.run.rank_watch import HUNG_SECONDS, PULSE_SECONDS, RankWatch
from dapo_openrlhf.backend.run.remote_trainer import RemoteTrainer, WatchedPublisher
from dapo_openrlhf.pipeline.batch import PlanSettings
from dapo_openrlhf.pipeline.ports import TrainerLost
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion, TrainBatch

NEVER = 1e9
KILLED = RayActorError(error_msg="Worker unexpectedly exits with a connection error code 2. End of file.")

Call = Callable[..., Coroutine[Any, Any, Any]]


class Rank(FakeActor):
    """Dies or hangs at a time; what it does until then is ``train``, and saving."""

    def __init__(
        self, *, dies: float = NEVER, hangs: float = NEVER, train: Call | None = None, error: Any = None
    ) -> None:
        self._dies, self._hangs, self._error = dies, hangs, error or KILLED
        super().__init__(
            alive=self._live, train=lambda plan, tokens: self._live(0.0, train), save=lambda path: self._live(5.0)
        )

    async def _live(self, seconds: float, work: Call | None = None) -> Any:
        clock = asyncio.get_running_loop().time
        working = asyncio.ensure_future(work() if work else asyncio.sleep(seconds))
        try:
            await asyncio.wait({working}, timeout=min(self._dies, self._hangs) - clock())
            if clock() >= self._dies:
                raise self._error
            if clock() >= self._hangs:
                await asyncio.sleep(self._dies - clock())
                raise self._error
            return working.result()
        finally:
            working.cancel()


def lost_at(*ranks: Rank) -> tuple[str, float]:
    """What watching these ranks ends with, and when."""

    async def main() -> tuple[str, float]:
        with pytest.raises(TrainerLost) as raised:
            await RankWatch(ranks).supervise()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return str(raised.value), asyncio.get_running_loop().time()

    return run_virtual(main())


def test_a_rank_that_dies_is_found_at_once() -> None:
    message, time = lost_at(Rank(), Rank(dies=1234.5))
    assert time == 1234.5
    assert message == "trainer rank 1 died: it was killed (SIGKILL) or crashed; its log is in Ray's session folder"


def test_a_rank_that_hangs_is_found_within_a_minute_of_its_last_answer() -> None:
    message, time = lost_at(Rank(hangs=1001.0), Rank())
    assert message == "trainer rank 0 hangs: its process has not answered for 60 s"
    assert 1001.0 + HUNG_SECONDS - PULSE_SECONDS <= time <= 1001.0 + HUNG_SECONDS + PULSE_SECONDS


def test_the_cause_is_told_where_it_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cause(words: str) -> str:
        return lost_at(Rank(dies=1.0, error=RayActorError(error_msg=words)))[0]

    assert "its machine is gone" in cause("because its node has died. Node Id: 1")
    assert "memory was full" in cause("killed due to the node running low on memory")
    assert cause("killed\nby a\tuser") == "trainer rank 0 died: killed by a user"
    unreachable = ActorUnavailableError("RPC error: Socket closed rpc_code: 14", None)
    assert lost_at(Rank(dies=1.0, error=unreachable))[0] == (
        "trainer rank 0 died: its process, or its machine, cannot be reached"
    )
    killed = iter([7, 8])
    monkeypatch.setattr(rank_watch, "killed_for_memory", lambda: next(killed))
    assert "the kernel has killed processes for want of memory meanwhile" in lost_at(Rank(dies=1.0))[0]
    monkeypatch.undo()
    vmstat = tmp_path / "vmstat"
    monkeypatch.setattr(rank_watch, "VMSTAT", vmstat)
    assert rank_watch.killed_for_memory() == 0
    vmstat.write_text("nr_free_pages 12\noom_kill 3\n")
    assert rank_watch.killed_for_memory() == 3


def batch() -> TrainBatch:
    return TrainBatch(step=7, version=PolicyVersion(7), groups=tuple(map(some_group, range(2))))


def trained(*ranks: Rank, timeout: float = 100.0) -> float:
    """The seconds that a step takes."""
    plan = PlanSettings(
        train_batch_size=4, max_epochs=1, max_tokens=100, overlong_filtering=True, seed=0,
        estimator="group_norm", loss_agg_mode="token-mean", longest_response=100,
    )  # fmt: skip

    async def main() -> float:
        clock = asyncio.get_running_loop().time
        try:
            await RemoteTrainer(ranks, plan, timeout=timeout).train(batch())
        finally:
            run.append(clock())
        return clock()

    run: list[float] = []
    try:
        return run_virtual(main())
    finally:
        seconds.append(run[0])


seconds: list[float] = []


async def forever() -> None:
    await asyncio.sleep(NEVER)


async def connection_closed() -> None:
    """A collective whose peer is gone."""
    await asyncio.sleep(10.0)
    raise RayTaskError("train", "", ConnectionError("closed by peer"))


async def no_memory() -> None:
    await asyncio.sleep(10.0)
    raise RayTaskError("train", "", MemoryError("CUDA out of memory"))


def test_a_rank_that_dies_in_a_step_is_a_loss_and_its_peers_are_not_waited_for() -> None:
    with pytest.raises(TrainerLost, match=r"^trainer rank 1 died"):
        trained(Rank(train=forever), Rank(dies=10.0, train=forever))
    assert seconds.pop() == 10.0


def test_peers_that_fail_first_are_not_blamed() -> None:
    """Ray learns of a lost machine long after a collective has."""
    with pytest.raises(TrainerLost, match=r"^trainer rank 1 died"):
        trained(Rank(train=connection_closed), Rank(hangs=9.0, dies=40.0, train=forever))
    assert seconds.pop() == 40.0


def test_an_exception_of_ranks_that_live_is_no_loss() -> None:
    """Out of memory, for one: it would come again."""
    with pytest.raises(WorkerFailed, match="training step 7: trainer rank 0 failed"):
        trained(Rank(train=no_memory), Rank(train=forever))
    assert seconds.pop() == 12.0


def test_a_rank_that_is_late_is_a_loss() -> None:
    with pytest.raises(
        TrainerLost, match=r"trainer rank 0, trainer rank 1 did not answer within 100 s \(async.train_timeout"
    ):
        trained(Rank(train=forever), Rank(train=forever))


def test_a_call_finds_out_by_itself_that_its_rank_hangs() -> None:
    with pytest.raises(TrainerLost, match=r"^trainer rank 0 hangs"):
        trained(Rank(hangs=10.0, train=forever), Rank(train=forever), timeout=NEVER / 2)
    assert seconds.pop() <= 10.0 + HUNG_SECONDS + PULSE_SECONDS


class Publisher:
    """Fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def send(self, version: PolicyVersion) -> Any:
        raise self._error

    async def deliver(self, publication: Any) -> None:
        raise self._error


@pytest.mark.parametrize("error", [WorkerFailed("engine 0 failed"), PipelineTimeout("not within 600 s")])
def test_a_publication_fails_for_the_trainers_loss_or_for_itself(error: Exception) -> None:
    """A rank that is late with its weights counts as lost though it answers."""
    sending = TrainerLost if isinstance(error, PipelineTimeout) else type(error)

    async def publish(*ranks: Rank) -> None:
        publisher = WatchedPublisher(Publisher(error), RankWatch(ranks))
        alive = len(ranks) > 1
        with pytest.raises(sending if alive else TrainerLost, match=str(error) if alive else "trainer rank 0 died"):
            await publisher.send(PolicyVersion(1))
        with pytest.raises(type(error) if alive else TrainerLost, match=str(error) if alive else "rank 0 died"):
            await publisher.deliver(None)  # type: ignore[arg-type]

    run_virtual(publish(Rank(dies=0.0)))
    run_virtual(publish(Rank(), Rank()))


def test_a_start_is_watched() -> None:
    async def main() -> float:
        assert await RankWatch([Rank()]).during(asyncio.sleep(500.0, "started")) == "started"
        with pytest.raises(TrainerLost, match="rank 1 hangs"):
            await RankWatch([Rank(), Rank(hangs=500.0)]).during(asyncio.sleep(NEVER))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) <= 500.0 + HUNG_SECONDS + PULSE_SECONDS
