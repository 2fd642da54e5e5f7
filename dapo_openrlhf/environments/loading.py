"""Finds the environment in a user's Python file: of our own kind, or an agent of OpenRLHF's (in an environment process)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

from dapo_openrlhf.environments.messages import Environment
from dapo_openrlhf.rewards.user_file import load_file

MakeEnvironment: TypeAlias = Callable[[], Environment]
"""Makes the environment of one episode."""

MODULE = "agent_module"
"""The name under which OpenRLHF loads such files."""


def load_environment(file: str) -> MakeEnvironment:
    """Load the file; every call of what is returned makes one episode's environment.

    Raises what the file raises, and ``ImportError`` with a sentence for the user if there is no environment in it.
    """
    names = vars(load_file(file, MODULE))
    own: Any = names.get("Environment")
    own = None if own is Environment else own  # imported for annotations
    agent: Any = names.get("AgentExecutor")
    if own is not None and agent is not None:
        raise ImportError(f"{file} defines both Environment and AgentExecutor; keep the one that is to be used")
    if agent is not None:
        from dapo_openrlhf.environments.openrlhf_agent import agent_environment

        return agent_environment(agent, file)
    if own is None:
        raise ImportError(
            f"{file} defines no Environment (a class with reset and step; see docs/environments.md) and no AgentExecutor "
            "(OpenRLHF's)"
        )
    return _maker(own, file)


def _maker(own: object, file: str) -> MakeEnvironment:
    if not callable(own):
        raise ImportError(
            f"Environment of {file} is one {type(own).__name__}, which rollouts would share; make it a class, or a "
            "function that returns a new one"
        )
    if isinstance(own, type) and not issubclass(own, Environment):
        raise ImportError(f"Environment of {file} needs two methods: reset(prompt) and step(action)")
    return cast("MakeEnvironment", own)
