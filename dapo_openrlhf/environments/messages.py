"""The messages between a rollout and its environment, and the two interfaces at their ends (standard library only).

One rollout's walk::

    Prompt ─▶ Environment.reset ─▶ Observation ─▶ engine ─▶ Action ─▶ Environment.step ─▶ Step ─▶ engine ─▶ … ─▶ Step(done)

Environments see text. The rollout keeps token ids: what an action's text was decoded from is never encoded again, and
an observation is encoded once, when it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a rollout begins with."""

    text: str | None = None
    """The whole text before the first action, special tokens included; None keeps the prompt as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What the policy has written in one turn."""

    text: str
    """The text without the token that ended it."""
    observed: str
    """All text before it: prompt, earlier actions and observations."""
    truncated: bool = False
    """Whether a limit ended the action, and the policy did not."""
    max_new_tokens: int | None = None
    """Limit that the action had, in tokens; None where nobody has said, as with the following."""
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An environment's answer to an action."""

    observation: str = ""
    """Text that the rollout goes on with, special tokens included. After the last action it is kept, and not trained."""
    reward: float = 0.0
    """Reward of this turn; a rollout's reward is the sum over its turns."""
    score: float | None = None
    """Score of the rollout so far; the last one counts for accuracy and dynamic sampling. None stands for the sum of
    the rewards."""
    done: bool = False
    logs: Mapping[str, float] = field(default_factory=dict)
    """Values to be logged; those of the last turn count."""
    max_new_tokens: int | None = None
    """Limit on the tokens of the following actions; None changes nothing."""
    temperature: float | None = None
    """Temperature of the following actions; None changes nothing."""


@runtime_checkable
class Environment(Protocol):
    """One episode; an object serves one rollout. Both methods may take long, and may be ended by a deadline."""

    async def reset(self, prompt: Prompt) -> Observation:
        """Begin the episode."""
        ...

    async def step(self, action: Action) -> Step:
        """Answer an action."""
        ...


class EnvironmentFailed(RuntimeError):
    """An environment raised, hung or died. ``reason`` names the counter that is increased; it is never a score of 0.

    ``blameless``: an episode of another prompt has brought down the process that both were in.
    """

    def __init__(self, reason: str, message: str, blameless: bool = False) -> None:
        super().__init__(reason, message, blameless)  # all arguments, so that the error survives pickling
        self.reason = reason
        self.blameless = blameless

    def __str__(self) -> str:
        return str(self.args[1])


class Environments(Protocol):
    """Many episodes at once, each under a name, in processes with deadlines. What the engine's side of a rollout calls.

    Each method raises :class:`EnvironmentFailed`, after which the episode is closed.
    """

    async def open(self, episode: str, prompt: Prompt) -> Observation:
        """Begin an episode under a name that no open episode has."""
        ...

    async def step(self, episode: str, action: Action) -> Step:
        """Answer an action of an open episode. After a step that is ``done`` the episode is closed."""
        ...

    async def close(self, episode: str) -> None:
        """Give up an episode; nothing happens if it is not open."""
        ...
