"""OpenRLHF's multi-turn agents (openrlhf/utils/agent.py of 0.11.2) as environments (in an environment process).

A file whose ``AgentExecutor`` is a ``MultiTurnAgentExecutor`` runs unchanged. Its executor is only asked for the class of
its agent: OpenRLHF's ``execute`` would itself ask an engine for whole responses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dapo_openrlhf.environments.answers import NO_CORRECTNESS, BadAnswer, text_of, truth_of
from dapo_openrlhf.environments.messages import Action, Environment, Observation, Step
from dapo_openrlhf.rewards.replies import BadReply, excerpt, read_reply
from dapo_openrlhf.types import Prompt


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """What an agent sees of the parameters of vLLM under the same names; it may change the first two."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = -1
    min_p: float = 0.0
    n: int = 1
    min_tokens: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: object = None
    stop_token_ids: object = None
    logprobs: int | None = 1
    skip_special_tokens: bool = False


CHANGEABLE = ("max_tokens", "temperature")
UNSET: Mapping[str, tuple[object, ...]] = {
    "max_tokens": (16,),
    "top_p": (1.0,),
    "top_k": (0,),
    "min_tokens": (0,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "skip_special_tokens": (True,),
}
"""Values by which vLLM's own ``SamplingParams`` say that nobody has set them."""


def agent_environment(executor: object, file: str) -> Callable[[], Environment]:
    """Make environments of the agent in a file's ``AgentExecutor``. Raises ``ImportError`` with what to write instead."""
    from openrlhf.utils.agent import AgentExecutorBase, MultiTurnAgentExecutor

    if not (isinstance(executor, type) and issubclass(executor, AgentExecutorBase)):
        raise ImportError(
            f"AgentExecutor of {file} is {excerpt(executor)}; it must be a class below OpenRLHF's MultiTurnAgentExecutor"
        )
    found: Any = executor
    if found.execute is not MultiTurnAgentExecutor.execute:
        raise ImportError(
            f"AgentExecutor of {file} has an execute of its own, which would generate outside the staleness bound; write "
            "what it does as reset and step of an AgentInstanceBase, and give that to MultiTurnAgentExecutor"
        )
    agent = found().agent_instance_cls

    def make() -> Environment:
        return AgentEnvironment(agent())

    return make


class AgentEnvironment:
    """One agent of OpenRLHF's as an :class:`Environment`."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._label: object = None

    async def reset(self, prompt: Prompt) -> Observation:
        """Begin the episode. Raises :class:`BadAnswer`, and what the agent raises."""
        self._label = prompt.label
        answer = await self._agent.reset({"observation": prompt.text, "label": prompt.label})
        if not isinstance(answer, Mapping) or "observation" not in answer:
            raise BadAnswer(f"reset() answered {excerpt(answer)}; it must answer a dict with 'observation'")
        text = text_of(answer["observation"], "reset(): observation")
        return Observation(text=None if text == prompt.text else text)

    async def step(self, action: Action) -> Step:
        """Answer an action. Raises :class:`BadAnswer`, and what the agent raises."""
        given = SamplingParams(max_tokens=action.max_new_tokens, temperature=action.temperature, top_p=action.top_p)
        held = copy.copy(given)
        answer = await self._agent.step(
            {
                "observation_text": action.observed,
                "action_text": action.text,
                "label": self._label,
                "sampling_params": held,
            }
        )
        if not isinstance(answer, Mapping):
            raise BadAnswer(f"step() answered {excerpt(answer)}; it must answer a dict")
        for key in ("rewards", "environment_feedback", "done"):
            if key not in answer:
                raise BadAnswer(f"step() answered no {key!r}, only {', '.join(map(repr, answer)) or 'an empty dict'}")
        if answer.get("environment_images"):
            raise BadAnswer("step() answered 'environment_images'; environments have text only here, so leave them out")
        try:
            (score,) = read_reply(answer, NO_CORRECTNESS)
        except BadReply as error:
            raise BadAnswer(f"step(): {error}") from None
        changed = _changes(given, answer.get("sampling_params") or held)
        return Step(
            observation=text_of(answer["environment_feedback"], "step(): environment_feedback"),
            reward=score.reward,
            score=score.score,
            done=truth_of(answer["done"]),
            logs=score.logs,
            max_new_tokens=changed.get("max_tokens"),
            temperature=changed.get("temperature"),
        )


def _changes(given: SamplingParams, answer: object) -> dict[str, Any]:
    """What an agent has changed of the parameters. Raises :class:`BadAnswer` for what cannot change within a rollout."""
    ours = asdict(given)
    theirs = answer if isinstance(answer, Mapping) else {name: getattr(answer, name, None) for name in ours}
    unset = {} if isinstance(answer, SamplingParams) else UNSET
    changed = {
        name: value
        for name, value in theirs.items()
        if value is not None and value != ours.get(name) and value not in unset.get(name, ())
    }
    if refused := sorted(map(str, changed.keys() - set(CHANGEABLE))):
        raise BadAnswer(
            f"step() changes {', '.join(refused)} of sampling_params; within a rollout only {' and '.join(CHANGEABLE)} "
            "can change, the rest is set for the whole run"
        )
    return changed
