"""Rollouts by turns through the real queue, pool, rollout loop and conductor, in virtual time.

Environments answer after times with a heavy tail, fail, and end early. Every run is made by its seed alone.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass

import pytest
from episode_engine import REPORT_SECONDS, EpisodeEngine, SlowEnvironments
from fakes import HANG, FakeScorer, World, build, check_prompts, fates

from dapo_openrlhf.pipeline.engine_life import SICK
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.events import EngineLost, GroupCut, GroupFailed, GroupGenerated, GroupJudged, GroupSurplus
from dapo_openrlhf.pipeline.health import HealthLimits
from dapo_openrlhf.pipeline.ports import EnvironmentFault, GroupError, Sampling
from dapo_openrlhf.pipeline.reward_attempts import Attempts
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Generation, Prompt, RolloutGroup, TrainBatch

pytestmark = pytest.mark.long

RUNS = 40
LATEST = 100_000.0
"""Virtual seconds after which a run counts as stuck."""


def heavy_tail(dice: random.Random) -> float:
    """Mostly under a second; one in a hundred takes over half a minute."""
    return min(0.3 * dice.paretovariate(0.9), 120.0)


@dataclass
class Played:
    world: World
    environments: SlowEnvironments
    batch_size: int
    max_staleness: int
    trained: list[RolloutGroup]


def play(seed: int, *, cut: bool | None = None) -> Played:
    dice = random.Random(seed)
    batch_size, max_staleness = dice.randint(1, 4), dice.randint(0, 3)
    environments = SlowEnvironments(lambda: heavy_tail(dice), dice, failures=dice.choice([0.0, 0.05]))
    trained: list[RolloutGroup] = []

    def work(batch: TrainBatch) -> None:
        trained.extend(batch.groups)

    async def main() -> World:
        engines = [
            EpisodeEngine(index, environments, seconds=lambda: dice.uniform(0.1, 2.0), dice=dice)
            for index in range(dice.randint(1, 3))
        ]
        world = build(
            batch_size=batch_size,
            max_staleness=max_staleness,
            steps=8,
            engines=engines,
            scorer=FakeScorer(fault=lambda group: GroupError("asked", "an episode has scores")),
            train_seconds=lambda: dice.uniform(0.2, 3.0),
            deliver_seconds=lambda: dice.uniform(0.0, 2.0),
            generate_timeout=5000.0,
            stall_timeout=6000.0,
            revive_seconds=lambda: 1.0,
            over_sampling=dice.choice([1.0, 2.0]),
            max_filtered_batches=1000,
            cut_late=dice.random() < 0.4 if cut is None else cut,
            work=work,
            seed=seed,
        )
        async with asyncio.timeout(LATEST):
            await world.run()
        left = [playing for engine in engines for playing in engine.left]
        await asyncio.gather(*left, return_exceptions=True)
        assert not asyncio.all_tasks() - {asyncio.current_task()}
        return world

    return Played(run_virtual(main()), environments, batch_size, max_staleness, trained)


def check(played: Played, seed: int) -> None:
    world = played.world
    assert len(world.trainer.batches) == 8
    # By the tokens that engines sampled: the oldest of all turns counts.
    assert all(age <= played.max_staleness for batch in world.trainer.batches for age in batch.ages)
    fates(world, batch_size=played.batch_size, slots=(played.max_staleness + 1) * played.batch_size * 2)
    check_prompts(world, permanent=lambda reason: False, prompt_count=1000, seed=seed)
    reasons = {event.reason for _, event in world.of(GroupFailed)}
    assert reasons <= {"environment_timeout", "environment_died", "cut_too_early"}
    assert not world.of(EngineLost), "no engine is blamed for an environment"
    assert not played.environments.open_now, "an environment is left open"
    for group in played.trained:
        assert sum(group.version_tokens) == group.response_tokens
        begun_with = len(group.prompt.text) + len(" and 0")
        assert all(r.length <= 40 and group.prompt_length + r.observed >= begun_with for r in group.rollouts)


def test_the_bound_holds_and_nothing_is_lost_whatever_environments_do() -> None:
    seen: set[type[object]] = set()
    for seed in range(RUNS):
        try:
            played = play(seed)
            check(played, seed)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        seen |= {type(event) for _, event in played.world.events}
    assert {GroupFailed, GroupCut, GroupSurplus} <= seen, "the runs do not try everything"


def test_a_cut_ends_what_environments_hold_up() -> None:
    """A group is late at its deadline because of an environment: it ends at once, and its length is not a new age."""
    cuts = 0
    for seed in range(20):
        world = play(seed, cut=True).world
        ended = {event.group: when for when, event in world.of(GroupGenerated)}
        ended |= {event.group: when for when, event in world.of(GroupFailed) if event.group not in ended}
        for when, event in world.of(GroupCut):
            cuts += 1
            assert event.group not in ended or when <= ended[event.group] <= when + REPORT_SECONDS
    assert cuts > 20


def test_what_environments_gave_is_what_is_judged_and_logged() -> None:
    played = play(1)
    judged = {event.group: event for _, event in played.world.of(GroupJudged)}
    for group in played.trained:
        event = judged[group.id]
        assert event.accuracy == group.accuracy == group.mean_score
        assert 1.0 <= event.logs["turns"] <= 4.0


def tokens_per_second(max_staleness: int) -> float:
    """With environments that take 0 to 5 s, mostly a fifth of a second, and steps of training of 4 s."""
    dice = random.Random(0)
    environments = SlowEnvironments(lambda: min(0.15 * dice.paretovariate(0.8), 5.0), dice, done=0.4)
    tokens: list[int] = []

    async def main() -> float:
        world = build(
            batch_size=8,
            max_staleness=max_staleness,
            steps=12,
            engines=[EpisodeEngine(0, environments, seconds=lambda: dice.uniform(0.2, 1.0), dice=dice)],
            train_seconds=lambda: 4.0,
            deliver_seconds=lambda: 0.3,
            max_filtered_batches=1000,
            over_sampling=None,
            work=lambda batch: tokens.append(sum(group.response_tokens for group in batch.groups)),
            checked=False,
        )
        await world.run()
        return world.trainer.batches[-1].ended

    seconds = run_virtual(main())
    return sum(tokens) / seconds


def test_staleness_hides_what_environments_take() -> None:
    """The same devices and the same work; what a run of 40 steps gains is in docs/environments.md."""
    synchronous = tokens_per_second(0)
    assert tokens_per_second(1) > 1.5 * synchronous
    assert tokens_per_second(2) > 2.2 * synchronous


class Failing:
    """An engine whose environments fail as the script says."""

    life = 0

    def __init__(self, script: list[bool], *, blameless: bool = False) -> None:
        self._script = script
        self._blameless = blameless

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        if self._script.pop(0):
            return None  # type: ignore[return-value]
        raise EnvironmentFault("environment_error", "division by zero", blameless=self._blameless)


@pytest.mark.parametrize(
    ("script", "permanent"),
    [([False] * 3, [False, False, True]), ([False, False, True, False], [False, False, None, False])],
)
def test_a_prompt_whose_environment_fails_every_time_is_given_up(
    script: list[bool], permanent: list[bool | None]
) -> None:
    async def main() -> list[bool | None]:
        sampler = Sampler(
            engines=EnginePool([Failing([*script])]),  # type: ignore[list-item]
            sampling=Sampling(n=2, max_new_tokens=9, temperature=1.0, top_p=1.0),
            timeout=60.0,
            attempts=Attempts(3),
        )
        found: list[bool | None] = []
        for number in range(len(script)):
            try:
                await sampler.sample(f"group {number}", Prompt(id=5, text=""), number)
                found.append(None)
            except GroupError as error:
                assert error.reason == "environment_error" and "division by zero" in str(error)
                found.append(error.permanent)
        return found

    assert run_virtual(main()) == permanent


def test_a_prompt_is_not_given_up_for_what_other_prompts_do() -> None:
    async def main() -> None:
        sampler = Sampler(
            engines=EnginePool([Failing([False] * 9, blameless=True)]),  # type: ignore[list-item]
            sampling=Sampling(n=2, max_new_tokens=9, temperature=1.0, top_p=1.0),
            timeout=60.0,
            attempts=Attempts(3),
        )
        for number in range(9):
            with pytest.raises(EnvironmentFault) as failure:
                await sampler.sample(f"group {number}", Prompt(id=5, text=""), number)
            assert not failure.value.permanent

    run_virtual(main())


def test_an_engine_whose_groups_wait_in_environments_does_not_hang() -> None:
    """No group is done within a group's time limit: the groups fail, and neither an engine nor a prompt is blamed."""
    dice = random.Random(0)
    slow = itertools.chain(itertools.repeat(HANG, 16), itertools.repeat(0.1))

    async def main() -> World:
        engine = EpisodeEngine(0, SlowEnvironments(lambda: next(slow), dice), seconds=lambda: 1.0, dice=dice)
        world = build(
            batch_size=4,
            steps=4,
            engines=[engine],
            scorer=FakeScorer(fault=lambda group: GroupError("asked", "an episode has scores")),
            generate_timeout=60.0,
            revive_seconds=lambda: 1.0,
            health=HealthLimits(must_finish_groups=False),
            max_filtered_batches=1000,
        )
        async with asyncio.timeout(LATEST):
            await world.run()
        await asyncio.gather(*engine.left, return_exceptions=True)
        return world

    world = run_virtual(main())
    assert len(world.trainer.batches) == 4
    failed = [event for _, event in world.of(GroupFailed)]
    assert len(failed) == SICK and {event.reason for event in failed} == {"generate_timeout"}
    assert "did not finish prompt" in failed[0].message and "async.generate_timeout" in failed[0].message
    assert not world.of(EngineLost)
    check_prompts(world, permanent=lambda reason: False, prompt_count=1000, seed=0)
