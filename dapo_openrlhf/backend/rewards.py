"""Reward workers: processes that can be killed, so that no answer hangs a run or lies about being wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf import verifier
from dapo_openrlhf.ports import GroupError
from dapo_openrlhf.types import Prompt, Score

RewardFunction = Callable[[list[str], list[str], list[str]], dict[str, Any]]
"""``reward_func(queries, prompts, labels)`` of one response each: query is prompt and response together."""


class RewardActor:
    """Scores responses against a gold answer, one group at a time, in a process of its own."""

    def __init__(self, *, function_file: str | None, correct_from: float) -> None:
        """``function_file``: a Python file with a ``reward_func``; None is the rule reward."""
        self._function = _load(function_file) if function_file else None
        self._correct_from = correct_from

    def ready(self) -> int:
        """The process id."""
        return os.getpid()

    def score(self, texts: Sequence[str], prompt: Prompt) -> tuple[Score, ...]:
        """Judge a group."""
        if self._function is not None:
            return tuple(self._ask(self._function, text, prompt) for text in texts)
        return _rule_reward(texts, prompt.label)

    def _ask(self, function: RewardFunction, text: str, prompt: Prompt) -> Score:
        """One call per response, as OpenRLHF does; of its answer ``scores`` decides on right, ``rewards`` trains."""
        answer = function([prompt.text + text], [prompt.text], [prompt.label])
        reward = _number(answer["rewards"])
        scored = answer.get("scores")
        return Score(correct=(reward if scored is None else _number(scored)) >= self._correct_from, reward=reward)


def _load(function_file: str) -> RewardFunction:
    spec = importlib.util.spec_from_file_location("reward_function", function_file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {function_file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: RewardFunction = module.reward_func
    return function


def _number(value: Any) -> float:
    """A number, or the only one of a list, tuple or tensor."""
    return float(value if isinstance(value, int | float) else value[0])


def _rule_reward(texts: Sequence[str], label: str) -> tuple[Score, ...]:
    """DAPO eq. 7. Equal answers are verified once."""
    known: dict[str | None, bool] = {None: False}
    scores = []
    for text in texts:
        answer = verifier.extract_answer(text)
        if answer not in known:
            known[answer] = answer is not None and _equivalent(answer, label)
        correct = known[answer]
        scores.append(Score(correct=correct, reward=verifier.RIGHT if correct else verifier.WRONG))
    return tuple(scores)


def _equivalent(answer: str, label: str) -> bool:
    """Equal texts, or equal to math-verify, which is asked only where texts may differ and still be equal."""
    if verifier.same_text(answer, label):
        return True
    if verifier.is_plain_number(verifier.normalise(answer)) and verifier.is_plain_number(verifier.normalise(label)):
        return False
    from math_verify import parse, verify  # 1 s, and integers do without

    # No time limits of its own: it keeps them by SIGALRM, which fails off the main thread and returns "wrong".
    # This process is killed from outside when it takes too long.
    gold = parse(f"\\boxed{{{label}}}", parsing_timeout=None)
    return bool(gold) and bool(verify(gold, parse(f"\\boxed{{{answer}}}", parsing_timeout=None), timeout_seconds=None))


class RewardPool:
    """Hands groups to free workers; kills and replaces a worker that takes too long. A ``RewardScorer``."""

    def __init__(self, *, workers: int, timeout: float, function_file: str | None, correct_from: float) -> None:
        self._timeout = timeout
        self._settings = {"function_file": function_file, "correct_from": correct_from}
        self._actor_class = ray.remote(RewardActor)
        self._workers = [self._start() for _ in range(workers)]
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in self._workers:
            self._free.put_nowait(worker)

    def _start(self) -> Any:
        return self._actor_class.options(num_cpus=0, max_restarts=0).remote(**self._settings)

    def ready(self) -> list[ray.ObjectRef]:
        """References that resolve once the workers run."""
        return [worker.ready.remote() for worker in self._workers]

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Judge the responses behind the reference ``texts``. An error is an error, never a wrong answer."""
        worker = await self._free.get()
        try:
            async with asyncio.timeout(self._timeout):
                return await worker.score.remote(texts, prompt)
        except TimeoutError:
            worker = self._replace(worker)
            message = f"scoring prompt {prompt.id} took over {self._timeout:g} s (async.reward_timeout)"
            raise GroupError("reward_timeout", message) from None
        except RayActorError as error:
            worker = self._replace(worker)
            raise GroupError("reward_died", f"a reward worker died: {error}") from error
        except RayTaskError as error:
            raise GroupError("reward_error", f"scoring prompt {prompt.id} failed: {error.cause!r}") from error
        finally:
            self._free.put_nowait(worker)

    def _replace(self, worker: Any) -> Any:
        ray.kill(worker)
        return self._start()
