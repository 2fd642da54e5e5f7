"""An engine whose rollouts are walks with environments, in virtual time: the real driver between fakes at both ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from fakes import FakeEngine, FakeGroup, Misuse, Seconds

from dapo_openrlhf.backend.engine.episode import Means
from dapo_openrlhf.backend.engine.episode_group import EpisodeGroup
from dapo_openrlhf.backend.engine.rollout_worker import EpisodeRules
from dapo_openrlhf.backend.engine.unfinished import Made
from dapo_openrlhf.backend.messages import GenerationReport, GroupTokens, VersionRuns
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Observation, Step
from dapo_openrlhf.pipeline.ports import CUT_TOO_EARLY, EnvironmentFault, GroupError, Sampling
from dapo_openrlhf.types import Generation, Prompt

REPORT_SECONDS = 0.01
"""The longest that a group takes from its engine to whoever waits for it."""


@dataclass
class SlowEnvironments:
    """Answers after ``seconds``, with an error now and then; ends an episode after a step with chance ``done``."""

    seconds: Seconds
    dice: random.Random
    done: float = 0.3
    failures: float = 0.0
    open_now: dict[str, bool] = field(default_factory=dict)
    """Whether each open episode is at work."""

    async def open(self, episode: str, prompt: Prompt) -> Observation:
        if episode in self.open_now:
            raise Misuse(f"{episode} is opened twice")
        self.open_now[episode] = False
        await self._work(episode)
        return Observation(text=f"{prompt.text} and {self.dice.randint(0, 9)}")

    async def step(self, episode: str, action: Action) -> Step:
        await self._work(episode)
        done = self.dice.random() < self.done
        if done:
            del self.open_now[episode]
        return Step(observation="more", reward=0.5, score=self.dice.choice([0.0, 1.0]), done=done)

    async def close(self, episode: str) -> None:
        self.open_now.pop(episode, None)

    async def _work(self, episode: str) -> None:
        if self.open_now[episode]:
            raise Misuse(f"{episode} is asked while it is at work")
        self.open_now[episode] = True
        await asyncio.sleep(self.seconds())
        self.open_now[episode] = False
        if self.dice.random() < self.failures:
            del self.open_now[episode]
            raise EnvironmentFailed(self.dice.choice(["environment_timeout", "environment_died"]), "no answer")


class LetterTexts:
    """A letter a token."""

    async def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    async def encode(self, text: str) -> list[int]:
        return [*map(ord, text)]


class TimedActions:
    """Samples an action in some seconds; half of its tokens have the version at its beginning, and half that at its end."""

    def __init__(self, version: Callable[[], int], seconds: Seconds, dice: random.Random) -> None:
        self.versions: list[int] = []
        """Of all tokens that were sampled, in order."""
        self._version = version
        self._seconds = seconds
        self._dice = dice
        self._running: dict[str, tuple[Future[Made], int, asyncio.TimerHandle]] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Made]:
        if group_id in self._running:
            raise Misuse(f"{group_id} is generated twice")
        future: Future[Made] = Future()
        tokens = self._dice.randint(1, min(10, sampling.max_new_tokens))
        timer = asyncio.get_running_loop().call_later(self._seconds(), self._end, group_id, tokens, False)
        self._running[group_id] = future, self._version(), timer
        return future

    def cut(self, group_id: str) -> None:
        if group_id in self._running:
            self._running[group_id][2].cancel()
            self._end(group_id, self._dice.randint(0, 3), True)

    def _end(self, group_id: str, tokens: int, cut: bool) -> None:
        future, begun, _ = self._running.pop(group_id)
        versions = [begun] * (tokens - tokens // 2) + [self._version()] * (tokens // 2)
        self.versions += versions
        future.set_result(_made(versions, cut) if versions else None)


def _made(versions: Sequence[int], cut: bool) -> Made:
    count = len(versions)
    runs = VersionRuns(versions=np.asarray(versions, np.int32), ends=np.arange(1, count + 1))
    report = GenerationReport(
        prompt_length=1, lengths=(count,), truncated=(cut,), cut=(cut,), oldest_version=min(versions),
        newest_version=max(versions), version_tokens=runs.tokens_of_versions(),
    )  # fmt: skip
    return report, GroupTokens(
        prompt_ids=np.zeros(1, np.int32),
        response_ids=np.full(count, ord("a"), np.int32),
        rollout_logprobs=np.zeros(count, np.float32),
        offsets=np.asarray([0, count]),
        versions=runs,
    )


class EpisodeEngine(FakeEngine):
    """A ``FakeEngine`` that plays. What it keeps of a group is what was sampled, not what the driver says of it."""

    def __init__(self, index: int, environments: SlowEnvironments, *, seconds: Seconds, dice: random.Random) -> None:
        super().__init__(index)
        self.environments = environments
        self.most_turns = 4
        self.left: list[asyncio.Future[object]] = []
        """Groups that nobody waits for any more."""
        self._seconds = seconds
        self._dice = dice
        self._playing: dict[str, EpisodeGroup] = {}

    def cut(self, request: str) -> None:
        if request in self._playing:
            self._playing[request].cut()

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        actions = TimedActions(lambda: self.version, self._seconds, self._dice)
        group = FakeGroup(prompt=prompt, engine=self.index, lengths=(), started=asyncio.get_running_loop().time())
        self.made.append(group)
        self.named[request] = group
        self.running.add(group)
        means = Means(actions=actions, texts=LetterTexts(), environments=self.environments, stop_ids=[])
        rules = EpisodeRules(max_turns=self.most_turns, max_length=1000, correct_from=1.0)
        self._playing[request] = EpisodeGroup(request, prompt, sampling.n, means=means, rules=rules)
        playing = asyncio.ensure_future(self._playing[request].play(sampling))
        try:
            made = await asyncio.shield(playing)
            await asyncio.sleep(self._dice.uniform(0.0, REPORT_SECONDS))
        except asyncio.CancelledError:
            group.end = "cancelled"
            self.cut(request)
            self.left.append(playing)
            raise
        except EnvironmentFailed as error:
            group.end = "failed"
            raise EnvironmentFault(error.reason, str(error)) from error
        finally:
            self.running.remove(group)
            group.ended = asyncio.get_running_loop().time()
        if made is None:
            group.end = "failed"
            raise GroupError(CUT_TOO_EARLY, "cut too early")
        if actions.running:
            raise Misuse("a rollout goes on after its group")
        report = made[0]
        group.end, group.lengths = "made", report.lengths
        group.oldest_version, group.newest_version = min(actions.versions), max(actions.versions)
        return report.generation(engine=self.index, tokens=group, texts=group)
