"""Environments in other actors: every caller finds an episode, and Ray's errors become an environment's."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from fake_actors import FakeActor
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.backend.remote_environments import RemoteEnvironments
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Observation, Step
from dapo_openrlhf.types import Prompt

PROMPT = Prompt(id=1, text="one", token_ids=(1, 2), label="2")
ACTION = Action(text="a", observed="one")


def test_every_caller_finds_an_episode() -> None:
    opened: list[dict[str, Prompt]] = [{}, {}, {}]

    def actor(held: dict[str, Prompt]) -> FakeActor:
        return FakeActor(
            open=lambda name, prompt: held.update({name: prompt}) or Observation(text=name),
            step=lambda name, action: Step(observation=held[name].text, done=True),
            close=lambda name: held.pop(name),
        )

    actors = [actor(held) for held in opened]

    async def run() -> None:
        one, other = (RemoteEnvironments(actors, patience=900.0) for _ in range(2))
        names = [f"group {index}/0" for index in range(60)]
        for name in names:
            assert await one.open(name, PROMPT) == Observation(text=name)
        assert sum(map(len, opened)) == 60 and min(map(len, opened)) >= 5
        assert {prompt.token_ids for held in opened for prompt in held.values()} == {()}
        assert [await other.step(name, ACTION) for name in names] == [Step(observation="one", done=True)] * 60

    asyncio.run(run())


def test_it_travels() -> None:
    assert isinstance(pickle.loads(pickle.dumps(RemoteEnvironments(["handle"], patience=1.0))), RemoteEnvironments)


def raising(error: BaseException) -> Any:
    def method(*_: object) -> None:
        raise error

    return method


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (RayActorError(), "environment_died", "the environment actor of a died"),
        (RayTaskError("step", "…", EnvironmentFailed("environment_error", "no")), "environment_error", "no"),
    ],
)
def test_errors_of_ray_are_an_environments(error: BaseException, reason: str, words: str) -> None:
    environments = RemoteEnvironments([FakeActor(step=raising(error))], patience=900.0)
    with pytest.raises(EnvironmentFailed, match=words) as failure:
        asyncio.run(environments.step("a", ACTION))
    assert failure.value.reason == reason


def test_an_actor_that_hangs_is_late() -> None:
    async def for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    environments = RemoteEnvironments([FakeActor(step=for_ever)], patience=0.1)
    with pytest.raises(EnvironmentFailed, match=r"did not answer within 0\.1 s \(environment\.timeout\)"):
        asyncio.run(environments.step("a", ACTION))
