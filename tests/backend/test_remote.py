"""Remote calls that end in time and say who failed; publications through the object store, and engines that miss them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fake_actors import FakeActor
from fake_engines import FakeEngine, after, failed
from ray.exceptions import RayActorError

from dapo_openrlhf.backend.messages import IncompleteWeights, StagedWeights, WeightAck, WeightLayout
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerDied, WorkerFailed, all_within
from dapo_openrlhf.backend.run.publishers.object_store import ObjectStorePublisher
from dapo_openrlhf.backend.run.publishers.ranks import Ranks
from dapo_openrlhf.backend.run.publishers.service import EngineService
from dapo_openrlhf.backend.run.remote_engine import ObjectStoreTexts
from dapo_openrlhf.pipeline.ports import GroupError, NotRevived
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion

LAYOUT = WeightLayout(names=("a",), dtypes=("float32",), shapes=((1,),), sizes=(4,))
STAGED = StagedWeights(version=9, checksum=77)


# ---------------------------------------------------------------- all_within


def within_ten(*calls: Coroutine[Any, Any, Any]) -> tuple[list[Any], float]:
    async def main() -> tuple[list[Any], float]:
        names = [f"trainer rank {index}" for index in range(len(calls))]
        results = await all_within(calls, names, 10.0, "training step 3", "async.train_timeout")
        return results, asyncio.get_running_loop().time()

    return run_virtual(main())


def test_results_come_in_order() -> None:
    assert within_ten(after(2, "a"), after(1, "b")) == (["a", "b"], 2.0)


def test_who_is_late_is_named() -> None:
    with pytest.raises(
        PipelineTimeout, match=r"step 3: trainer rank 1 did not answer within 10 s \(async.train_timeout"
    ):
        within_ten(after(1), after(11))


def test_an_error_is_raised_at_once() -> None:
    async def main() -> float:
        with pytest.raises(ValueError, match="no memory"):
            await all_within([after(1, ValueError("no memory")), after(1e6)], ["a", "b"], 1e7, "", "")
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "calls outlive their error"
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) < 10


def test_of_a_dead_process_and_its_peers_errors_the_dead_one_is_named() -> None:
    """Collectives of the others break a moment before Ray knows why."""
    with pytest.raises(WorkerDied, match="training step 3: trainer rank 1 died"):
        within_ten(after(1, RuntimeError("connection closed by peer")), after(1.5, RayActorError()), after(1e6))


# ---------------------------------------------------------------- object store


class LoadingEngine(FakeEngine):
    """Its actor loads by ``load``, given the version; a new one by ``load_again``."""

    def __init__(self, load: Callable[[int], Any], load_again: Callable[[int], Any] | None = None) -> None:
        loads = [load_again or load, load]
        self.start_answer: Any = None
        super().__init__(
            lambda: FakeActor(
                load_weights=self._loaded(loads.pop() if len(loads) > 1 else loads[0]),
                ready=lambda: self.start_answer or after(20),
            )
        )

    def _loaded(self, load: Callable[[int], Any]) -> Callable[..., Any]:
        return lambda version, layout, *buckets: load(version)

    @property
    def loaded(self) -> list[int]:
        """The versions that its actors were to load."""
        return [given[0] for name, given in self.calls if name == "load_weights"]


def acknowledge(seconds: float = 1.0, checksum: int = 77) -> Callable[[int], Any]:
    return lambda version: after(seconds, WeightAck(version=version, checksum=checksum, spans=()))


def dies(version: int) -> Any:
    return after(0.5, RayActorError())


def hangs(version: int) -> Any:
    return after(1e9)


def publisher(*engines: LoadingEngine) -> ObjectStorePublisher:
    rank = FakeActor(weight_layout=lambda: LAYOUT, export_weights=lambda: [b"bucket", STAGED])
    other = FakeActor(export_weights=lambda: [])
    service = EngineService(engines, timeout=60.0, start_timeout=100.0)  # type: ignore[arg-type]
    return ObjectStorePublisher(Ranks([rank, other], timeout=60.0), service)


async def publish(publisher: ObjectStorePublisher, *versions: int) -> None:
    for version in versions:
        await publisher.deliver(await publisher.send(PolicyVersion(version)))


def test_every_engine_gets_every_version_and_another_acknowledgement_is_refused() -> None:
    engines = LoadingEngine(acknowledge()), LoadingEngine(acknowledge(2.0))
    run_virtual(publish(publisher(*engines), 1, 2))
    assert [engine.loaded for engine in engines] == [[1, 2], [1, 2]]
    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(publish(publisher(LoadingEngine(acknowledge(checksum=78))), 1))
    assert raised.group_contains(RuntimeError, match=r"engine 0 acknowledged version 1 with checksum 0x0*4e")


def test_a_version_goes_live_without_an_engine_that_dies() -> None:
    dead, well = LoadingEngine(dies, acknowledge()), LoadingEngine(acknowledge())

    async def main() -> None:
        store = publisher(dead, well)
        await publish(store, 1, 2)
        assert (dead.loaded, well.loaded) == ([1], [1, 2])
        await store.revive(0)
        await publish(store, 3)

    run_virtual(main())
    assert (dead.loaded, well.loaded) == ([1, 2, 3], [1, 2, 3])
    assert "engine 0 died" in dead.stopped, "it may be out of reach only, and at work with older weights"


def test_the_news_that_an_engine_has_died_does_not_end_the_one_in_its_place() -> None:
    """Its groups have failed first, so it is replaced already when the publication hears of it."""
    engine = LoadingEngine(dies, acknowledge())

    async def main() -> None:
        store = publisher(engine)
        publishing = asyncio.create_task(publish(store, 1))
        await asyncio.sleep(0.1)
        await store.revive(0)
        await publishing
        await publish(store, 2)

    run_virtual(main())
    assert (engine.stopped, engine.loaded) == ("", [1, 1, 2])


def test_an_engine_that_hangs_is_ended_and_the_version_goes_live_without_it() -> None:
    """Its groups fail then, so that the pool replaces it."""
    hung, well = LoadingEngine(hangs, acknowledge()), LoadingEngine(acknowledge())

    async def main() -> None:
        store = publisher(hung, well)
        await publish(store, 1)
        assert asyncio.get_running_loop().time() == 60.0
        await publish(store, 2)
        await store.revive(0)
        await publish(store, 3)

    run_virtual(main())
    assert "loading the weights of version 1: engine 0 did not answer within 60 s" in hung.stopped
    assert (hung.loaded, well.loaded, well.stopped) == ([1, 2, 3], [1, 2, 3], "")


def test_an_engine_that_fails_to_load_is_ended_and_the_version_goes_live_without_it() -> None:
    broken, well = (
        LoadingEngine(lambda version: after(1, failed("no room")), acknowledge()),
        LoadingEngine(acknowledge()),
    )

    async def main() -> None:
        store = publisher(broken, well)
        await publish(store, 1)
        await store.revive(0)
        await publish(store, 2)

    run_virtual(main())
    assert "loading the weights of version 1: engine 0 failed" in broken.stopped
    assert (broken.loaded, well.loaded) == ([1, 1, 2], [1, 2])


def test_weights_that_fit_no_engine_end_the_run() -> None:
    unfit = lambda version: after(1, failed(IncompleteWeights("up went into none")))  # noqa: E731
    engine = LoadingEngine(unfit)
    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(publish(publisher(engine), 1))
    assert raised.group_contains(WorkerFailed, match="up went into none")
    assert not engine.stopped


@pytest.mark.parametrize("fails", ["in its start", "in loading", "late"])
def test_a_new_engine_that_fails_is_no_reason_to_end_the_run(fails: str) -> None:
    again = {"in its start": acknowledge(), "in loading": dies, "late": hangs}
    engine = LoadingEngine(acknowledge(), again[fails])

    async def main() -> None:
        store = publisher(engine)
        await publish(store, 1)
        engine.start_answer = after(3.0, RayActorError()) if fails == "in its start" else None
        with pytest.raises(NotRevived, match="did not answer within 60 s" if fails == "late" else "engine 0 died"):
            await store.revive(0)
        await publish(store, 2)

    run_virtual(main())
    assert 2 not in engine.loaded


def test_a_publication_while_an_engine_is_replaced_reaches_it_too() -> None:
    """It starts for 20 s and loads for 10; version 2 is packed when it begins to load, version 3 meanwhile."""
    engines = LoadingEngine(acknowledge(), acknowledge(10.0)), LoadingEngine(acknowledge())

    async def main() -> None:
        store = publisher(*engines)
        await publish(store, 1)
        reviving = asyncio.create_task(store.revive(0))
        await asyncio.sleep(5.0)
        await publish(store, 2)
        await asyncio.sleep(16.0)
        await publish(store, 3)
        assert not reviving.done()
        await reviving
        assert asyncio.get_running_loop().time() == pytest.approx(41.0)
        await publish(store, 4)

    run_virtual(main())
    assert [engine.loaded for engine in engines] == [[1, 2, 3, 4], [1, 2, 3, 4]]


def test_before_the_first_publication_a_new_engine_has_the_weights_the_run_began_with() -> None:
    engine = LoadingEngine(acknowledge())
    run_virtual(publisher(engine).revive(0))
    assert engine.loaded == []


def test_a_delivery_that_was_meant_for_an_engine_s_predecessor_leaves_it_alone() -> None:
    """The pool hears of the death in the very moment in which a publication begins; the new engine starts for 90 s."""
    engine, well = LoadingEngine(acknowledge(), acknowledge()), LoadingEngine(acknowledge())

    async def main() -> None:
        store = publisher(engine, well)
        await publish(store, 1)
        publication = await store.send(PolicyVersion(2))
        engine.start_answer, reviving = after(90.0), []
        # It begins between the moment in which the delivery decides whom to reach and its first call.
        asyncio.get_running_loop().call_soon(lambda: reviving.append(asyncio.ensure_future(store.revive(0))))
        await asyncio.ensure_future(store.deliver(publication))
        assert asyncio.get_running_loop().time() < 60.0, "it waits for the engines that are there"
        await reviving[0]

    run_virtual(main())
    assert (engine.stopped, engine.loaded) == ("", [1, 2])


@pytest.mark.parametrize("seed", range(100))
def test_whenever_engines_die_and_are_replaced_the_news_ends_no_successor(seed: int) -> None:
    dice = random.Random(seed)

    def load(version: int) -> Any:
        return after(
            dice.choice([1.0, 30.0, 1e9]),
            dice.choice([WeightAck(version=version, checksum=77, spans=()), RayActorError()]),
        )

    engines = [LoadingEngine(load, acknowledge(dice.choice([1.0, 20.0]))) for _ in range(2)]

    async def replace(store: ObjectStorePublisher, index: int) -> None:
        await asyncio.sleep(dice.choice([0.0, 0.5, 1.0, 30.0, 59.9, 60.0, 61.0]))
        await store.revive(index)

    async def main() -> None:
        store = publisher(*engines)
        replacing = [asyncio.ensure_future(replace(store, index)) for index in range(2)]
        await publish(store, 1, 2, 3)
        await asyncio.gather(*replacing)
        await publish(store, 4)

    run_virtual(main())
    assert [engine.loaded[-1] for engine in engines] == [4, 4]
    assert all(engine.ended <= {0} for engine in engines), "a successor was ended"


def test_texts_that_do_not_arrive_are_an_error() -> None:
    with pytest.raises(GroupError, match="did not arrive within 60 s") as raised:
        run_virtual(ObjectStoreTexts(timeout=60.0).fetch(after(1e9)))
    assert raised.value.reason == "texts_lost"
