"""Prompts that engines fail on: whose fault it is (standard library).

An engine that dies takes every group in it along, and each of their prompts may be the cause. So nobody is convicted by
company: a prompt under which engines died :data:`DEATHS` times in a row is tried alone, in an engine that has just
answered another one. What kills that engine is dropped for good; what does not is as good as any.
"""

from __future__ import annotations

from collections import defaultdict
from enum import Enum, auto

from dapo_openrlhf.pipeline.ports import GroupError, PromptFault
from dapo_openrlhf.types import Prompt

DEATHS = 2
"""Engines that died in a row with the prompt in them, from which on it is tried alone."""

FAILURES = 3
"""Failures in a row, on engines that did other groups in between, the last of which is the prompt's own fault."""

KILLS_ENGINES = "prompt_kills_engines"
FAILS = "prompt_fails"

Moment = tuple[int, int, int]
"""An engine, how often it was replaced and how many groups it has done: while these stay, it may be the engine's fault."""


class Suspicion(Enum):
    """How careful to be with a prompt."""

    NONE = auto()
    PROBE = auto()
    """Let it begin alone: what kills an engine mostly does so with its first token."""
    TRIAL = auto()
    """It killed again after a probe: let it run alone to its end."""


class Suspects:
    """Remembers what happened to engines while they had a prompt, until it was done once."""

    def __init__(self) -> None:
        self._deaths: defaultdict[Prompt, list[int]] = defaultdict(list)
        self._failures: defaultdict[Prompt, set[Moment]] = defaultdict(set)
        self._convicted: dict[Prompt, PromptFault] = {}

    def suspicion(self, prompt: Prompt) -> Suspicion:
        """How to run the prompt next. Raises :class:`PromptFault` for one that was convicted before."""
        if prompt in self._convicted:
            error = self._convicted[prompt]
            raise PromptFault(error.reason, str(error))
        deaths = len(self._deaths.get(prompt, ()))
        return Suspicion.NONE if deaths < DEATHS else Suspicion.PROBE if deaths == DEATHS else Suspicion.TRIAL

    def done(self, prompt: Prompt) -> None:
        """Every suspicion is off."""
        if self._deaths or self._failures:
            self._deaths.pop(prompt, None)
            self._failures.pop(prompt, None)

    def died(self, prompt: Prompt, engine: int) -> None:
        """An engine died with the prompt, and others, in it."""
        self._deaths[prompt].append(engine)

    def failed(self, prompt: Prompt, moment: Moment, error: GroupError) -> None:
        """The prompt failed in an engine that goes on. Raises :class:`PromptFault` when that was once too often."""
        self._failures[prompt].add(moment)
        if len(self._failures[prompt]) >= FAILURES:
            fault = PromptFault(
                FAILS,
                f"{error}; {prompt.name} is dropped: it failed {FAILURES} times where others were done in between",
            )
            self._convict(prompt, fault)

    def killed(self, prompt: Prompt, error: GroupError) -> tuple[list[int], PromptFault]:
        """The prompt killed an engine that had nothing else: the engines it killed before, and the error about it."""
        engines = self._deaths.pop(prompt, [])
        fault = PromptFault(
            KILLS_ENGINES,
            f"{prompt.name} is dropped: engines died under it {len(engines) + 1} times, the last time with nothing else "
            f"in it: {error}",
        )
        self._convicted[prompt] = fault
        return engines, fault

    def words(self) -> str:
        """The prompts that most of the deaths have in common, for a diagnosis; "" if none were in two."""
        most = max((len(deaths) for deaths in self._deaths.values()), default=0)
        names = [prompt.name for prompt, deaths in self._deaths.items() if len(deaths) == most]
        return f"; in the engine at {most} deaths: {', '.join(names[:3])}" if most > 1 and len(names) <= 3 else ""

    def _convict(self, prompt: Prompt, fault: PromptFault) -> None:
        self.done(prompt)
        self._convicted[prompt] = fault
        raise fault
