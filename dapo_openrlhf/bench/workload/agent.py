"""The environment of the comparison with turns: an agent of OpenRLHF's, which both sides load unchanged.

A rollout has two actions. After each the environment works for a while that has a heavy tail: 0.1 s at least, twice as
long half as often, 5 s at most. How long, follows from the prompt and what was written, so a rollout that is sampled again
takes as long again. Then it says the prompt's mark once more, which has the policy write on, or judges as ``reward.py``.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from dapo_openrlhf.bench.workload.reward import END, score

TURNS = 2
SHORTEST, LONGEST = 0.1, 5.0
"""Seconds for an answer."""
TAIL = 1.0
"""Index of the Pareto distribution of these seconds; with 1 each power of two above the shortest holds as much time."""


def seconds(text: str) -> float:
    """How long the environment takes to answer, by the whole text of the rollout so far."""
    written = text.replace(END, "")  # which one side leaves out
    return min(SHORTEST * random.Random(written).paretovariate(TAIL), LONGEST)


class Agent(AgentInstanceBase):  # type: ignore[misc]  # openrlhf has no types
    """One rollout."""

    def __init__(self) -> None:
        self._turns = 0
        self._mark = ""

    async def reset(self, states: dict[str, Any], **kwargs: object) -> dict[str, Any]:
        """Keep the prompt's mark."""
        self._mark = states["observation"][-1]
        return {"observation": states["observation"]}

    async def step(self, state_dict: dict[str, Any], **kwargs: object) -> dict[str, Any]:
        """Wait, and go on or judge."""
        self._turns += 1
        action = state_dict["action_text"]
        await asyncio.sleep(seconds(state_dict["observation_text"] + action))
        done = self._turns == TURNS
        value = score(action.removesuffix(END), state_dict["label"])
        return {
            "rewards": torch.tensor(value if done else 0.0),
            "scores": value,
            "environment_feedback": "" if done else self._mark,
            "done": done,
        }


class AgentExecutor(MultiTurnAgentExecutor):  # type: ignore[misc]  # openrlhf has no types
    """What OpenRLHF looks for in the file."""

    def __init__(self) -> None:
        super().__init__(Agent)
