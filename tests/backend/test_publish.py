"""Broadcasts within groups, seen from the controller: few calls, groups of the living, and nothing waits for the dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fake_actors import FakeActor
from fake_engines import FakeEngine, after, died, failed

from dapo_openrlhf.backend.messages import (
    IncompleteWeights,
    StagedWeights,
    TransferAborted,
    WeightAck,
    WeightLayout,
)
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerDied, WorkerFailed
from dapo_openrlhf.backend.run.publishers.broadcast import ATTEMPTS, BroadcastPublisher
from dapo_openrlhf.backend.run.publishers.groups import GroupKind, TransferGroups
from dapo_openrlhf.backend.run.publishers.members import LEAVING_SECONDS, Limits
from dapo_openrlhf.backend.run.publishers.ranks import Ranks
from dapo_openrlhf.backend.run.publishers.service import EngineService
from dapo_openrlhf.config.transports import TransportName
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion

LAYOUT = WeightLayout(names=("a", "b"), dtypes=("bfloat16",) * 2, shapes=((2, 3), (4,)), sizes=(12, 8))
CHECKSUM = 77
TIMEOUT = 600.0


class World:
    """Ranks and engines in groups: a call waits until every member of its group has called, or is told to leave."""

    def __init__(
        self,
        ranks: int = 1,
        engines: int = 1,
        *,
        transport: TransportName = "gloo",
        workers: int = 1,
        leaving: float = LEAVING_SECONDS,
    ) -> None:
        self.address, self.port = "10.0.0.1", 4242
        self.trained = 0
        self.aborted: dict[int, asyncio.Event] = {}
        self.reasons: list[str] = []
        self._arrived: dict[tuple[int, int], set[str]] = {}
        self._turns: dict[tuple[str, int], int] = {}
        self._groups: dict[str, tuple[int, int]] = {}
        self.misbehave: dict[str, Callable[[str], Any]] = {}
        self.ranks = [self._rank(index) for index in range(ranks)]
        self.engines = [FakeEngine(lambda index=index: self._engine(index)) for index in range(engines)]
        self.publisher = BroadcastPublisher(
            Ranks(self.ranks, timeout=TIMEOUT),
            EngineService(self.engines, timeout=TIMEOUT, start_timeout=100.0),  # type: ignore[arg-type]
            TransferGroups(self, GroupKind(transport=transport, workers=workers), timeout=TIMEOUT),  # type: ignore[arg-type]
            limits=Limits(timeout=TIMEOUT, leaving=leaving),
        )

    def abort(self, generation: int, reason: str) -> None:
        """As ``StoreHost``."""
        self.reasons.append(reason)
        self._told(generation).set()

    def _told(self, generation: int) -> asyncio.Event:
        return self.aborted.setdefault(generation, asyncio.Event())

    async def _together(self, name: str, part: int) -> None:
        """Wait for the members of the group, counted by processes."""
        generation, size = self._groups[name]
        turn = self._turns[name, generation] = self._turns.get((name, generation), 0) + 1
        self._arrived.setdefault((generation, turn), set()).update(f"{name}/{worker}" for worker in range(part))
        told = self._told(generation)
        while len(self._arrived[generation, turn]) < size:
            await asyncio.sleep(1.0)
            if told.is_set():
                raise TransferAborted("told to leave")

    def _call(self, name: str, method: str, part: int, answer: Any) -> Callable[..., Any]:
        async def called(*arguments: Any) -> Any:
            if method == "join_transfer":
                meeting, *_, size = arguments
                self._groups[name] = meeting.generation, size
            if (misbehaviour := self.misbehave.get(name)) and (result := misbehaviour(method)) is not None:
                return await result
            if name not in self._groups:  # a rank without a group
                return None
            await self._together(name, part)
            return answer(*arguments)

        return called

    def _rank(self, index: int) -> FakeActor:
        name = f"trainer rank {index}"
        return FakeActor(
            weight_layout=lambda: LAYOUT,
            join_transfer=self._call(name, "join_transfer", 1, lambda *arguments: None),
            leave_transfer=lambda: self._groups.pop(name, None) and None,
            send_weights=self._call(name, "send_weights", 1, lambda: CHECKSUM),
            export_weights=lambda: (
                [b"bucket", StagedWeights(version=self.trained, checksum=CHECKSUM)] if not index else []
            ),
        )

    def _engine(self, index: int) -> FakeActor:
        name = f"engine {index}"

        def acknowledge(version: int, *arguments: Any) -> WeightAck:
            return WeightAck(version=version, checksum=CHECKSUM, spans=())

        def load(version: int, *arguments: Any) -> Any:
            misbehaviour = self.misbehave.get(name, lambda method: None)
            return misbehaviour("load_weights") or acknowledge(version)

        return FakeActor(
            ready=lambda: after(20),
            join_transfer=self._call(name, "join_transfer", 1, lambda *arguments: None),
            receive_weights=self._call(name, "receive_weights", 1, acknowledge),
            load_weights=load,
            phase=lambda: "receiving",
        )

    async def publish(self, *versions: int) -> None:
        """One after the other, as trained."""
        for version in versions:
            self.trained = version
            await self.publisher.deliver(await self.publisher.send(PolicyVersion(version)))

    def took(self, index: int) -> list[tuple[str, int]]:
        """The versions that the engine's actors got, and how."""
        ways = {"receive_weights": "broadcast", "load_weights": "copy"}
        return [(ways[name], given[0]) for name, given in self.engines[index].calls if name in ways]


def on(method: str, what: Callable[[], Any], times: int = 1) -> Callable[[str], Any]:
    """Misbehave in the first calls of a method."""
    left = [times]

    def misbehaviour(called: str) -> Any:
        if called != method or not left[0]:
            return None
        left[0] -= 1
        return what()

    return misbehaviour


def run(main: Callable[[World], Coroutine[Any, Any, Any]], **world: Any) -> World:
    """In virtual time, within one loop."""

    async def running() -> World:
        made = World(**world)
        await main(made)
        return made

    return run_virtual(running())


def hangs() -> Any:
    return after(1e9)


def test_one_group_is_the_sender_and_then_every_worker_and_is_formed_once() -> None:
    world = run(lambda world: world.publish(1, 2), ranks=2, engines=2)
    ((meeting, size),) = world.ranks[0].named("join_transfer")
    assert (meeting.kind, meeting.address, meeting.port, size) == ("gloo", "10.0.0.1", 4242, 3)
    assert not world.ranks[1].named("join_transfer")
    assert [engine.actor.named("join_transfer") for engine in world.engines] == [[(meeting, 1, 3)], [(meeting, 2, 3)]]
    assert [len(rank.named("send_weights")) for rank in world.ranks] == [2, 2], "every rank takes part in gathering"
    assert [world.took(index) for index in range(2)] == [[("broadcast", 1), ("broadcast", 2)]] * 2


def test_engines_of_several_workers_have_as_many_places() -> None:
    async def main(world: World) -> None:
        engines = {index: engine.actor for index, engine in enumerate(world.engines)}
        calls = world.publisher._groups.joining(Ranks(world.ranks, timeout=1.0), engines)
        for call in calls.values():
            call.close()  # type: ignore[attr-defined]
        assert [engine.actor.named("join_transfer")[0][1:] for engine in world.engines] == [(1, 9), (5, 9)]

    run(main, engines=2, workers=4)


def test_engines_that_share_gpus_have_a_group_each_with_the_rank_beside_them() -> None:
    async def main(world: World) -> None:
        await world.publish(1)
        joined = [rank.named("join_transfer")[0] for rank in world.ranks]
        assert [size for _, size in joined] == [2, 2]
        assert [engine.actor.named("join_transfer") for engine in world.engines] == [[(at, 1, 2)] for at, _ in joined]
        assert joined[0][0].generation != joined[1][0].generation
        world.misbehave["engine 1"] = on("receive_weights", lambda: after(1, died()))
        await world.publish(2)
        assert len(world.ranks[1].named("leave_transfer")) == 1, "it takes part in gathering only"

    world = run(main, ranks=2, engines=2, transport="ipc")
    assert world.took(0) == [("broadcast", 1), ("broadcast", 2), ("broadcast", 2)]


@pytest.mark.parametrize("where", ["join_transfer", "receive_weights"])
@pytest.mark.parametrize("fault", ["died", "failed", "hangs"])
def test_the_version_is_sent_again_among_the_living(where: str, fault: str) -> None:
    faults = {"died": lambda: after(3, died()), "failed": lambda: after(3, failed("no room")), "hangs": hangs}

    async def main(world: World) -> None:
        await world.publish(1)
        if where == "join_transfer":
            world.publisher._groups.dissolve()
        world.misbehave["engine 1"] = on(where, faults[fault])
        begun = asyncio.get_running_loop().time()
        await world.publish(2)
        seconds = asyncio.get_running_loop().time() - begun
        assert seconds < (TIMEOUT + LEAVING_SECONDS + 20 if fault == "hangs" else LEAVING_SECONDS)
        await world.publish(3)

    world = run(main, engines=3)
    words = {
        "died": "engine 1 died",
        "failed": "no room",
        "hangs": r"did not answer within 600 s (async.publish_timeout)",
    }
    assert words[fault] in world.engines[1].stopped
    assert world.took(0)[-1] == world.took(2)[-1] == ("broadcast", 3)
    assert not world.engines[0].stopped and not world.engines[2].stopped


def test_an_engine_that_is_still_at_its_groups_when_told_to_leave_has_time_for_them() -> None:
    """It loads only when these are done."""

    async def main(world: World) -> None:
        world.misbehave["engine 0"] = on("receive_weights", lambda: after(400, TransferAborted("told to leave")))
        world.misbehave["engine 1"] = on("receive_weights", lambda: after(1, died()))
        await world.publish(1)

    world = run(main, engines=2, leaving=LEAVING_SECONDS + 600)
    assert not world.engines[0].stopped
    assert world.took(0) == [("broadcast", 1), ("broadcast", 1)]


def test_an_engine_that_comes_back_gets_a_copy_and_joins_before_the_next_version() -> None:
    async def main(world: World) -> None:
        await world.publish(1)
        world.misbehave["engine 0"] = on("receive_weights", lambda: after(1, died()))
        await world.publish(2)
        await world.publisher.revive(0)
        await world.publish(3)

    world = run(main, engines=2)
    assert world.took(0) == [("broadcast", 1), ("broadcast", 2), ("copy", 2), ("broadcast", 3)]
    assert world.took(1) == [("broadcast", version) for version in (1, 2, 2, 3)]


def test_a_copy_that_a_publication_overtakes_is_followed_by_another() -> None:
    """The engine starts for 20 s and loads for 500; version 2 is sent meanwhile."""

    async def main(world: World) -> None:
        await world.publish(1)
        copied = WeightAck(version=1, checksum=CHECKSUM, spans=())
        world.misbehave["engine 0"] = on("load_weights", lambda: after(500, copied))
        reviving = asyncio.create_task(world.publisher.revive(0))
        await asyncio.sleep(100)
        await world.publish(2)
        assert not reviving.done()
        await reviving
        await world.publish(3)

    world = run(main, engines=2)
    assert world.took(0) == [("broadcast", 1), ("copy", 1), ("copy", 2), ("broadcast", 3)]


def test_with_no_engine_left_the_version_is_staged_and_waits_for_none() -> None:
    async def main(world: World) -> None:
        await world.publish(1)
        world.misbehave["engine 0"] = on("receive_weights", lambda: after(1, died()))
        await world.publish(2)
        await world.publish(3)
        await world.publisher.revive(0)
        await world.publish(4)

    world = run(main)
    assert world.took(0) == [("broadcast", 1), ("broadcast", 2), ("copy", 3), ("broadcast", 4)]
    assert len(world.ranks[0].named("export_weights")) == 2, "of version 3 one copy is enough"


def test_a_copy_may_be_ahead_of_what_is_live_and_says_so() -> None:
    async def main(world: World) -> None:
        await world.publish(1)
        world.trained = 2  # trained, and not sent yet
        await world.publisher.revive(0)
        await world.publish(2)

    assert run(main, engines=2).took(0) == [("broadcast", 1), ("copy", 2), ("broadcast", 2)]


def test_before_the_first_publication_a_new_engine_has_what_the_run_began_with() -> None:
    assert run(lambda world: world.publisher.revive(0)).took(0) == []


def test_what_cannot_be_broadcast_goes_through_the_object_store() -> None:
    """Nobody is to blame: the network between them fails."""

    async def main(world: World) -> None:
        world.misbehave["engine 0"] = on("receive_weights", lambda: after(1, TransferAborted("reset")), times=ATTEMPTS)
        await world.publish(1)
        await world.publish(2)

    world = run(main)
    assert world.took(0) == [*[("broadcast", 1)] * ATTEMPTS, ("copy", 1), ("broadcast", 2)]
    assert not world.engines[0].stopped


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (lambda: after(1, died()), WorkerDied, "sending the weights of version 1: trainer rank 0 died"),
        (
            lambda: after(1, failed("w holds NaN")),
            WorkerFailed,
            "sending the weights of version 1: trainer rank 0 failed",
        ),
        (hangs, PipelineTimeout, r"version 1: trainer rank 0 did not answer within 600 s \(async.publish_timeout"),
    ],
)
def test_a_trainer_rank_that_fails_ends_the_publication_and_no_engine(fault: Any, error: Any, words: str) -> None:
    async def main(world: World) -> None:
        world.misbehave["trainer rank 0"] = on("send_weights", fault)
        with pytest.raises(error, match=words):
            await world.publish(1)
        assert not world.engines[0].stopped

    run(main)


def test_a_publication_that_is_cancelled_leaves_no_member_waiting() -> None:
    """As when somebody else finds that a trainer rank is lost."""

    async def main(world: World) -> None:
        world.misbehave["trainer rank 0"] = on("send_weights", hangs)
        sending = asyncio.create_task(world.publish(1))
        await asyncio.sleep(10)
        sending.cancel()
        await asyncio.wait([sending])
        assert world.reasons == ["sending the weights of version 1: given up"]
        await world.publish(2)

    assert run(main).took(0) == [("broadcast", 1), ("broadcast", 2)]


def test_weights_that_do_not_fit_the_engines_end_the_publication() -> None:
    async def main(world: World) -> None:
        unfit = IncompleteWeights("up as published went into none of its parameters")
        world.misbehave["engine 0"] = on("receive_weights", lambda: after(1, failed(unfit)))
        with pytest.raises(WorkerFailed, match="went into none"):
            await world.publish(1)
        assert not world.engines[0].stopped

    run(main)


def test_another_checksum_is_refused_and_names_the_engine() -> None:
    async def main(world: World) -> None:
        other = WeightAck(version=1, checksum=CHECKSUM + 1, spans=())
        world.misbehave["engine 1"] = on("receive_weights", lambda: after(0, other))
        world.misbehave["engine 0"] = on(
            "receive_weights", lambda: after(0, WeightAck(version=1, checksum=77, spans=()))
        )
        world.misbehave["trainer rank 0"] = on("send_weights", lambda: after(0, CHECKSUM))
        with pytest.raises(RuntimeError, match=r"engine 1 acknowledged version 1 with checksum 0x0*4e, .* 0x0*4d was"):
            await world.publish(1)

    run(main, engines=2)


def test_ranks_that_differ_are_refused() -> None:
    async def main(world: World) -> None:
        world.misbehave["trainer rank 1"] = on("send_weights", lambda: after(2, CHECKSUM + 1))
        world.misbehave["engine 1"] = on(
            "receive_weights", lambda: after(2, WeightAck(version=1, checksum=78, spans=()))
        )
        with pytest.raises(
            RuntimeError, match=r"trainer ranks hold different weights of version 1.*'trainer rank 1': 78"
        ):
            await world.publish(1)

    run(main, ranks=2, engines=2, transport="ipc")


@pytest.mark.parametrize("lost", [False, True])
def test_calls_do_not_grow_with_the_number_of_parameters(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each rank and engine, of which joining is done once; with no engine left, one for each rank."""

    async def main(world: World) -> None:
        if lost:
            world.publisher._engines.end(0, world.engines[0].actor, "lost")
        await world.publish(1, 2)

    def calls(parameters: int) -> int:
        names = tuple(map(str, range(parameters)))
        layout = WeightLayout(
            names=names, dtypes=("bfloat16",) * parameters, shapes=((2,),) * parameters, sizes=(4,) * parameters
        )
        monkeypatch.setitem(globals(), "LAYOUT", layout)
        world = run(main, ranks=2)
        return sum(len(rank.calls) for rank in world.ranks) + len(world.engines[0].calls)

    assert calls(2) == calls(2000) == (5 if lost else 10)
