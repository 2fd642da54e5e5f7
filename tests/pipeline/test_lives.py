"""A run whose trainer is lost, at any moment: it goes on within the run, and what it leaves is that of one that lost nothing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import pytest
from fakes import FakeCheckpoints, FakeEngine, FakeScorer, Trained, World, build, filtered

from dapo_openrlhf.pipeline.conductor import Outcome, Pipeline
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Checkpointed,
    Evaluated,
    Event,
    GroupDispatched,
    PublicationLive,
    Rewound,
    StepDone,
    StepTrained,
    TrainerReplaced,
)
from dapo_openrlhf.pipeline.ledger import REWOUND, Ledger
from dapo_openrlhf.pipeline.lives import Carried, Lives, pause_before
from dapo_openrlhf.pipeline.ports import TrainerLost
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.pipeline.stop import StopRequest
from dapo_openrlhf.plan.virtual_time import run_virtual

pytestmark = pytest.mark.long

STEPS, BATCH = 6, 2
START_SECONDS = 20.0
MANY = 1000

E = TypeVar("E", bound=Event)


@dataclass(kw_only=True)
class Run:
    """A run of several lives on the same engines: a ``TrainerSource``. Each call of ``starts`` is a start of a trainer."""

    engines: Sequence[FakeEngine]
    save_steps: int
    problem_count: int
    share_filtered: float
    starts: Callable[[], TrainerLost | None]
    damaged: Callable[[int], bool]
    scorer: FakeScorer
    worlds: list[World] = field(default_factory=list)
    checkpoints: FakeCheckpoints = field(default_factory=FakeCheckpoints)
    events: list[tuple[float, Event]] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    running: bool = False
    error: str = ""
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self.log = EventLog(None, clock=asyncio.get_running_loop().time)
        self.log.listen(lambda event: self.events.append((self.log.now(), event)))
        self._chosen = 0

    def life(self, carried: Carried | None) -> Pipeline:
        state = next((state for state in self.checkpoints.states if state.step == self._chosen), None)
        world = build(
            steps=STEPS,
            batch_size=BATCH,
            max_staleness=1,
            engines=self.engines,
            scorer=self.scorer,
            train_seconds=lambda: 1.0,
            send_seconds=lambda: 0.25,
            deliver_seconds=lambda: 0.5,
            problem_count=self.problem_count,
            eval_steps=2,
            save_steps=self.save_steps,
            state=state,
            carried=carried,
            checkpoints=self.checkpoints,
            checked=False,
            log=self.log,
        )
        self.worlds.append(world)
        self.running = True
        return world.pipeline

    async def end(self) -> None:
        self.running = False
        assert not any(engine.running for engine in self.engines), "engines generate for a life that is over"

    async def newest(self) -> int:
        steps = {state.step for state in self.checkpoints.states if not self.damaged(state.step)}
        self._chosen = max(steps, default=0)
        newer = [state for state in self.checkpoints.states if state.step > self._chosen]
        assert not newer or all(self.damaged(state.step) for state in newer)
        return self._chosen

    async def begin(self, carried: Carried) -> Pipeline:
        assert not self.running, "a trainer is started beside another one"
        await asyncio.sleep(START_SECONDS / 2)
        if (error := self.starts()) is not None:
            raise error
        await asyncio.sleep(START_SECONDS / 2)
        return self.life(carried)

    def of(self, kind: type[E]) -> list[E]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def lineage(self) -> list[Trained]:
        """The batches that are in the final weights, by the trainers' own records."""
        batches: list[Trained] = []
        for world, after in zip(self.worlds, [*self.worlds[1:], None], strict=True):
            batches += world.trainer.batches
            if after is not None:
                del batches[after.pipeline.first_step :]
        return batches


def play(
    *losses: tuple[float, str],
    asked: float | None = None,
    most: int = MANY,
    save_steps: int = 2,
    problem_count: int = 0,
    share_filtered: float = 0.3,
    starts: Callable[[], TrainerLost | None] = lambda: None,
    damaged: Callable[[int], bool] = lambda step: False,
    seed: int = 0,
) -> Run:
    """A run whose trainer dies or hangs at these times."""

    async def main() -> Run:
        dice = random.Random(seed)
        run = Run(
            engines=[FakeEngine(index, latency=lambda: dice.uniform(0.5, 3.0)) for index in range(2)],
            scorer=FakeScorer(pattern=filtered(share_filtered, seed=seed)),
            save_steps=save_steps,
            problem_count=problem_count,
            share_filtered=share_filtered,
            starts=starts,
            damaged=damaged,
        )
        stop, loop = StopRequest(grace=50.0), asyncio.get_running_loop()
        lives = Lives(run.life(None), run, most=most, log=run.log)

        def lose(how: str) -> None:
            if run.running:
                getattr(run.worlds[-1].trainer, how)()

        for time, how in losses:
            loop.call_later(time, lose, how)
        if asked is not None:
            loop.call_later(asked, stop.ask)
        try:
            run.outcome = await lives.run(stop)
        except TrainerLost as error:
            run.error = str(error)
        run.ended_at = loop.time()
        left_over = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left_over, f"tasks outlived the run: {left_over}"
        return run

    run = run_virtual(main())
    assert not any(engine.running for engine in run.engines), "engines generate for a run that is over"
    return run


def check(run: Run) -> None:
    """A run that went to its end trained every step once in the surviving lineage, and each prompt once."""
    batches, outcome = run.lineage(), run.outcome
    assert [batch.version for batch in batches] == list(range(STEPS))
    assert (outcome.steps, outcome.model_saved) == (STEPS, True)
    assert max(age for batch in batches for age in batch.ages) <= 1
    prompts = [group.prompt.id for batch in batches for group in batch.groups]
    assert len(set(prompts)) == len(prompts) == STEPS * BATCH
    counters, dropped = outcome.counters, Counter(outcome.counters["dropped"])
    trained = sum(len(world.trainer.batches) for world in run.worlds)
    assert (counters["trained"], counters["training"]) == (STEPS * BATCH, 0)
    assert dropped[REWOUND] >= trained * BATCH - STEPS * BATCH
    assert (
        counters["dispatched"]
        == len(run.of(GroupDispatched))
        == sum((STEPS * BATCH, dropped.total(), counters["in_flight"], counters["ready"]))
    )
    groups = [event.group for event in run.of(GroupDispatched)]
    assert groups == list(range(len(groups))), "no two groups of the run share an id"
    rewound = run.of(Rewound)
    assert outcome.restarts == len(run.worlds) - 1 == len(run.of(TrainerReplaced))
    assert outcome.steps_undone == sum(event.from_step - event.to_step for event in rewound)
    assert trained == STEPS + outcome.steps_undone
    versions = 0
    for _, event in run.events:
        if isinstance(event, Rewound):
            versions = event.to_step
        elif isinstance(event, PublicationLive):
            versions += 1
            assert event.version == versions, "versions go back with a rewind only"


def moments(**settings: int) -> list[float]:
    """The times of all events of a run that loses nothing, and the middles between them."""
    times = sorted({time for time, _ in play(share_filtered=0.0, **settings).events})
    assert len(times) > 30
    return sorted([*times, *((a + b) / 2 for a, b in pairwise(times))])


@pytest.mark.parametrize("how", ["die", "hang"])
@pytest.mark.parametrize(("problem_count", "save_steps"), [(0, -1), (3, 1), (3, 2)])
def test_a_loss_at_any_moment_ends_like_a_run_that_lost_nothing(how: str, problem_count: int, save_steps: int) -> None:
    replaced = 0
    for time in moments(problem_count=problem_count, save_steps=save_steps)[how == "hang" :: 2]:
        run = play((time, how), problem_count=problem_count, save_steps=save_steps, share_filtered=0.0)
        check(run)
        replaced += run.outcome.restarts
        if problem_count:
            evaluated = [event.step for event in run.of(Evaluated)]
            assert set(evaluated) == {0, 2, 4, 6}
            assert run.outcome.accuracy_before is not None and run.outcome.accuracy_after is not None
            for rewound in run.of(Rewound):
                assert evaluated.count(rewound.to_step) <= 1 or rewound.to_step not in (0, 2, 4), "measured again"
    assert replaced > 20


@pytest.mark.parametrize("seed", range(60))
def test_any_losses_end_like_none(seed: int) -> None:
    dice = random.Random(seed)
    losses = [(dice.uniform(0.0, 120.0), dice.choice(["die", "hang"])) for _ in range(dice.randint(1, 5))]
    fails = iter([dice.random() < 0.3 for _ in range(MANY)])
    run = play(
        *losses,
        save_steps=dice.choice([-1, 1, 2, 3]),
        problem_count=dice.choice([0, 3]),
        starts=lambda: TrainerLost("trainer rank 1 died") if next(fails) else None,
        damaged=(lambda step: step == 4) if dice.random() < 0.3 else lambda step: False,
        seed=seed,
    )
    check(run)


@pytest.mark.parametrize("seed", range(60))
def test_losses_and_a_request_to_end_leave_what_the_outcome_says(seed: int) -> None:
    dice = random.Random(f"stop/{seed}")
    losses = [(dice.uniform(0.0, 60.0), dice.choice(["die", "hang"])) for _ in range(dice.randint(1, 3))]
    asked = dice.uniform(0.0, 70.0)
    run = play(*losses, asked=asked, save_steps=dice.choice([-1, 1, 2]), seed=seed)
    outcome = run.outcome
    assert run.ended_at <= asked + 50.0 or outcome.model_saved
    if outcome.model_saved:
        return check(run)
    kept, counters = max((state.step for state in run.checkpoints.states), default=0), outcome.counters
    hung = "hang" in {how for _, how in losses}  # for longer than the grace, in a step or in saving it
    assert outcome.steps == kept or (hung and outcome.steps > kept), "what is done lies in a checkpoint"
    assert counters["trained"] == outcome.steps * BATCH and counters["training"] in (0, hung * BATCH)


def test_a_loss_is_told_with_what_it_costs_and_what_follows() -> None:
    run = play((12.0, "die"), most=3, share_filtered=0.0)
    (rewound,), (replaced,) = run.of(Rewound), run.of(TrainerReplaced)
    assert rewound.message == "trainer rank 0 is gone"
    assert (rewound.restart, rewound.max_restarts, rewound.pause) == (1, 3, 2.0)
    assert rewound.from_step > rewound.to_step >= 2
    assert (replaced.step, replaced.seconds) == (rewound.to_step, 2.0 + START_SECONDS)


def test_pauses_grow_and_too_many_losses_end_the_run() -> None:
    """The trainer never comes back, or dies again at once."""
    run = play((12.0, "die"), most=3, starts=lambda: TrainerLost("trainer rank 1 died"))
    assert [event.pause for event in run.of(Rewound)] == [2.0, 10.0, 50.0]
    assert [event.restart for event in run.of(Rewound)] == [1, 2, 3]
    assert run.error.startswith(
        "trainer rank 1 died; that ends the run after 3 restarts within an hour (train.max_restarts 3)"
    )
    assert "--resume" in run.error


def test_without_restarts_a_loss_ends_the_run_at_once() -> None:
    run = play((12.0, "die"), most=0)
    assert run.ended_at == 12.0 and not run.of(Rewound)
    assert run.error.startswith("trainer rank 0 is gone; that ends the run (train.max_restarts 0)")


def test_restarts_of_an_hour_ago_do_not_count() -> None:
    restarts = RestartBudget(2)
    counted = [restarts.charge(life, now) for life, now in enumerate((0.0, 1000.0, 3601.0, 4601.0, 8300.0))]
    assert counted == [1, 2, 2, 2, 1]


def test_each_further_pause_within_the_hour_is_five_times_longer() -> None:
    assert [pause_before(number) for number in (1, 2, 3)] == [2.0, 10.0, 50.0]


def test_an_error_that_would_come_again_ends_the_run() -> None:
    """The trainer has run out of memory, as its rank says."""

    async def main() -> None:
        world = build(train_fails_at=1)
        log = EventLog(None, clock=asyncio.get_running_loop().time)
        never = Run(
            engines=world.engines, save_steps=-1, problem_count=0, share_filtered=0.0, scorer=FakeScorer(),
            starts=lambda: None, damaged=lambda step: False,
        )  # fmt: skip
        await Lives(world.pipeline, never, most=3, log=log).run(StopRequest(grace=1.0))

    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(main())
    assert raised.group_contains(RuntimeError, match="ran out of memory")


def test_a_loss_once_the_model_is_saved_does_not_matter() -> None:
    whole = play(problem_count=3, share_filtered=0.0)
    saved = max(time for time, event in whole.events if isinstance(event, Checkpointed))
    run = play((saved + 0.01, "die"), problem_count=3, share_filtered=0.0)
    assert run.outcome.restarts == 0
    check(run)


def test_a_run_of_one_life_has_the_outcome_of_its_pipeline() -> None:
    run = play(problem_count=3)
    (world,) = run.worlds
    assert run.outcome == world.pipeline.outcome
    assert [event.step for event in run.of(StepDone)] == list(range(STEPS))
    assert len(run.of(StepTrained)) == len(run.of(BatchTaken)) == STEPS


def test_a_rewind_drops_what_is_held_and_undone() -> None:
    ledger = Ledger()
    ledger.dispatched, ledger.trained, ledger.training = 20, 8, 2
    ledger.dropped["all_right"] = 4
    ledger.rewind(4, held=6)
    ledger.check(in_flight=0, ready=0)
    assert (ledger.trained, ledger.dropped) == (4, Counter(all_right=4, rewound=12))
