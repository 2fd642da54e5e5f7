"""Where rewards come from: the rule, a user's Python file, an HTTP endpoint (run in a judge's process only)."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dapo_openrlhf import verifier
from dapo_openrlhf.types import Score

RULE = "rule"
"""The name of the rule reward (eq. 7) where a file or an address may stand too."""


class Undecided(BaseException):
    """Whether an answer is right is not known: it is too expensive, or there is too little memory or stack to tell.

    No ``Exception``: nothing on the way may take it for "not equal".
    """


class RewardSource(Protocol):
    """One reward. Raises whatever goes wrong: an error is never a wrong answer."""

    def __call__(self, response: str, prompt: str, label: str) -> Score:
        """Judge one response."""
        ...


def open_source(name: str, *, number_form: bool, correct_from: float, timeout: float) -> RewardSource:
    """The reward that ``reward.remote_url`` names: ``rule``, a file ending in ``.py``, or an http(s) address."""
    if name == RULE:
        return RuleReward(number_form=number_form)
    if name.startswith(("http://", "https://")):
        return HttpReward(address=name, correct_from=correct_from, timeout=timeout)
    return FunctionReward(load_function(name), correct_from=correct_from)


class RuleReward:
    """DAPO eq. 7: +1 for an answer equivalent to the gold one, else -1."""

    def __init__(self, *, number_form: bool = False) -> None:
        """``number_form``: whether a number must be answered with a number, and not with what gives it."""
        from dapo_openrlhf.judge import algebra  # mpmath, and only here

        algebra.prepare()
        self._number_form = number_form
        self._equal = functools.lru_cache(maxsize=256)(algebra.equal)  # a group's answers repeat each other

    def __call__(self, response: str, prompt: str, label: str) -> Score:
        """Judge one response; raises :class:`Undecided`."""
        answer = verifier.extract_answer(response, prompt)
        correct = answer is not None and verifier.compare(answer, label, self._equal, number_form=self._number_form)
        return Score(correct=correct, reward=verifier.RIGHT if correct else verifier.WRONG)


RewardFunction = Callable[[list[str], list[str], list[str]], Mapping[str, Any]]
"""``reward_func(queries, prompts, labels)`` of one response each, as OpenRLHF calls it: a query is prompt and response
together. Its answer's ``rewards`` train; its ``scores``, or ``rewards`` without them, decide on right."""


def load_function(file: str) -> RewardFunction:
    """``reward_func`` of a Python file. Raises what the file raises, and ``ImportError`` without the function."""
    spec = importlib.util.spec_from_file_location("reward_function", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = vars(module).get("reward_func")
    if not callable(function):
        raise ImportError(f"{file} defines no reward_func(queries, prompts, labels)")
    return function  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A user's function."""

    function: RewardFunction
    correct_from: float

    def __call__(self, response: str, prompt: str, label: str) -> Score:
        """Judge one response."""
        return read_reply(self.function([prompt + response], [prompt], [label]), self.correct_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReward:
    """OpenRLHF's remote reward protocol, one response a request."""

    address: str
    correct_from: float
    timeout: float
    """Seconds without a byte; the whole request has the response's deadline."""

    def __call__(self, response: str, prompt: str, label: str) -> Score:
        """Judge one response. Raises ``OSError`` for what the network or the server does."""
        body = json.dumps({"query": [prompt + response], "prompts": [prompt], "labels": [label]}).encode()
        request = urllib.request.Request(self.address, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            return read_reply(json.load(reply), self.correct_from)


def read_reply(reply: object, correct_from: float) -> Score:
    """The one reward of a function's or a server's reply. Raises ``TypeError`` or ``ValueError`` for another form."""
    if not isinstance(reply, Mapping) or reply.get("rewards") is None:
        raise TypeError(f"the reward answered {str(reply)[:80]!r}, not a mapping with 'rewards'")
    reward = _number(reply["rewards"])
    scored = reply.get("scores")
    return Score(correct=(reward if scored is None else _number(scored)) >= correct_from, reward=reward)


def _number(value: Any) -> float:
    """A number, or the only one of a list, tuple or tensor."""
    while isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 1:
            raise ValueError(f"one response was asked about, {len(value)} rewards were answered")
        value = value[0]
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward {number} is no finite number")
    return number


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """Several rewards: their weighted sum trains, the first alone decides on right."""

    sources: Sequence[RewardSource]
    weights: Sequence[float]

    def __call__(self, response: str, prompt: str, label: str) -> Score:
        """Judge one response."""
        scores = [source(response, prompt, label) for source in self.sources]
        reward = math.fsum(weight * score.reward for weight, score in zip(self.weights, scores, strict=True))
        return Score(correct=scores[0].correct, reward=reward)
