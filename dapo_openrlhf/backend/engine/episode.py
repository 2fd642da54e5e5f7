"""One rollout with an environment: actions and observations by turns (asyncio; runs on an engine actor's event loop).

Every action is a request of its own to the engine, with all tokens so far as its prompt, so a rollout takes no place in
the engine while its environment works. What the policy has sampled stays as token ids: it is decoded for the
environment, and never encoded again. What the environment writes is encoded once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from dapo_openrlhf.backend.engine.rollout_worker import EpisodeRules
from dapo_openrlhf.backend.engine.unfinished import Made
from dapo_openrlhf.backend.messages import BadPrompt, GroupTokens
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Environments, Step
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.types import Prompt, Score, Segment

Result = TypeVar("Result")


class Actions(Protocol):
    """Samples actions: :class:`~dapo_openrlhf.backend.engine.loop.EngineLoop`."""

    def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Made]:
        """Sample a response to a prompt; None if it is cut before it has a token."""
        ...

    def cut(self, group_id: str) -> None:
        """End a response with the tokens so far."""
        ...


class Texts(Protocol):
    """The tokenizer."""

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        ...

    async def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that the tokenizer would put around it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What the rollouts of an engine use."""

    actions: Actions
    texts: Texts
    environments: Environments
    stop_ids: Sequence[int]
    """The tokens that end an action."""


class Episode:
    """One rollout. Its results may be read once :meth:`play` has returned."""

    def __init__(self, name: str, prompt: Prompt, means: Means, rules: EpisodeRules) -> None:
        """``name``: unique among the episodes of a run."""
        self.actions: list[GroupTokens] = []
        """Each action, as a group of a single response."""
        self.observations: list[tuple[int, list[int]]] = []
        """What the environment put into the context: the number of action tokens before it, and its tokens."""
        self.start: list[int] = []
        """The tokens before the first action."""
        self.segments: list[Segment] = []
        self.truncated = True
        """Whether a limit has ended the rollout, or its last action, and not the policy or the environment."""
        self.cut_off = False
        """Whether the rollout was cut before its end."""
        self._name = name
        self._prompt = prompt
        self._means = means
        self._rules = rules
        self._context: list[int] = []
        self._text = ""
        self._length = 0  # action tokens
        self._read_again = 0  # tokens in the contexts of all turns but the first, and how many of them were cached
        self._found = 0
        self._rewards: list[float] = []
        self._last: Step | None = None
        self._cut = asyncio.Event()
        self._acting = ""  # the request in the engine

    @property
    def length(self) -> int:
        """Number of action tokens."""
        return self._length

    def score(self) -> Score:
        """What the environment gave so far: the sum of its rewards, and its last score and logs.

        Logged too are the number of ``turns``, and ``kv_reused``: which share of the contexts of all turns but the first
        was in the engine's prefix cache.
        """
        reward, last = math.fsum(self._rewards), self._last
        score = reward if last is None or last.score is None else last.score
        own = {"turns": float(len(self.actions))}
        if self._read_again:
            own["kv_reused"] = self._found / self._read_again
        logs = {**own, **(last.logs if last is not None else {})}
        return Score(correct=score >= self._rules.correct_from, reward=reward, score=score, logs=logs)

    def cut(self) -> None:
        """End the rollout: the action in progress with the tokens so far, an environment at work without its answer."""
        self._cut.set()
        if self._acting:
            self._means.actions.cut(self._acting)

    async def play(self, sampling: Sampling) -> None:
        """Go on until the environment is done, a limit is reached, or the rollout is cut.

        ``sampling.max_new_tokens`` limits all actions together. Raises :class:`EnvironmentFailed`, and
        :class:`BadPrompt` if there is no room for an action. The environment is closed in any case.
        """
        try:
            await self._play(sampling)
        finally:
            if self._last is None or not self._last.done:
                self.cut_off = self._cut.is_set()
                await self._means.environments.close(self._name)

    async def _play(self, sampling: Sampling) -> None:
        most = sampling.max_new_tokens
        limit = self._rules.max_action_tokens or most
        if not await self._reset():
            return
        for turn in range(self._rules.max_turns):
            room = min(limit, most - self._length, self._rules.max_length - len(self._context))
            if room <= 0 or self._cut.is_set():
                return
            seed = None if sampling.seed is None else sampling.seed + (turn << 32)
            action = await self._act(turn, replace(sampling, n=1, max_new_tokens=room, seed=seed))
            if action is None or self._cut.is_set():
                return
            step = await self._unless_cut(self._means.environments.step(self._name, action))
            if step is None:
                return
            await self._take_in(step)
            if step.done:
                self.truncated = action.truncated
                return
            limit = limit if step.max_new_tokens is None else step.max_new_tokens
            sampling = sampling if step.temperature is None else replace(sampling, temperature=step.temperature)

    async def _reset(self) -> bool:
        """Begin; False if the rollout was cut meanwhile."""
        first = await self._unless_cut(self._means.environments.open(self._name, self._prompt))
        if first is None:
            return False
        if first.text is None:
            self._text, self.start = self._prompt.text, [*self._prompt.token_ids]
        else:
            self._text, self.start = first.text, await self._means.texts.encode(first.text)
            self.segments.append(Segment(kind="observation", text=first.text, tokens=len(self.start)))
        if not 0 < len(self.start) < self._rules.max_length:
            raise BadPrompt(
                "prompt_too_long" if self.start else "prompt_empty",
                f"what the environment begins with has {len(self.start)} tokens; data.max_len "
                f"{self._rules.max_length} must have room for it and for an action",
            )
        self._context = [*self.start]
        return True

    async def _act(self, turn: int, sampling: Sampling) -> Action | None:
        self._acting = f"{self._name}/{turn}"
        future = self._means.actions.generate(self._acting, self._context, sampling)
        # The engine's thread sets the result of a future that nobody may have cancelled.
        made = await asyncio.shield(asyncio.wrap_future(future))
        self._acting = ""
        if made is None:
            return None
        report, tokens = made
        ids, truncated = tokens.response_ids.tolist(), report.truncated[0]
        if turn > 0:
            self._read_again += len(self._context)
            self._found += sum(report.cached)
        self.actions.append(tokens)
        self._context += ids
        self._length += len(ids)
        ended = not truncated and ids[-1] in self._means.stop_ids
        text = await self._means.texts.decode(ids[:-1] if ended else ids)
        self.segments.append(Segment(kind="action", text=text, tokens=len(ids)))
        observed, self._text = self._text, self._text + text
        return Action(
            text=text,
            observed=observed,
            truncated=truncated,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )

    async def _take_in(self, step: Step) -> None:
        if not math.isfinite(step.reward) or not (step.score is None or math.isfinite(step.score)):
            raise EnvironmentFailed(
                "environment_error", f"reward {step.reward} and score {step.score} of {self._name} are not both finite"
            )
        self._last = step
        self._rewards.append(step.reward)
        self.segments[-1] = replace(self.segments[-1], reward=step.reward)
        if not step.observation:
            return
        ids = await self._means.texts.encode(step.observation)
        self.segments.append(Segment(kind="observation", text=step.observation, tokens=len(ids)))
        self.observations.append((self._length, ids))
        self._context += ids
        self._text += step.observation

    async def _unless_cut(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """Wait for the environment, or give it up once the rollout is cut."""
        task, cut = asyncio.ensure_future(work), asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({task, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cut.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None
