"""Decides whether a prompt or an engine is at fault when engines fail (standard library).

When an engine dies, every group in it is lost, and each of their prompts may be the cause. A prompt is therefore not
dropped for having been there: after :data:`DEATHS` deaths in a row it is tried alone, in an engine that has just
answered another prompt. If it kills that engine, it is dropped for good; otherwise it is treated like any other.
"""

from __future__ import annotations

from collections import defaultdict
from enum import Enum, auto

from dapo_openrlhf.pipeline.ports import GroupError, PromptFault
from dapo_openrlhf.types import Prompt

DEATHS = 2
"""Number of engines in a row that died with the prompt in them, from which on it is tried alone."""

FAILURES = 3
"""Number of failures in a row, on engines that did other groups in between, after which the prompt is at fault."""

KILLS_ENGINES = "prompt_kills_engines"
FAILS = "prompt_fails"

Life = tuple[int, int]
"""An engine, and which of its lives."""

Moment = tuple[int, int, int]
"""An engine, which of its lives, and how many groups were done in it; while these stay the same, the engine may be at
fault."""


class Suspicion(Enum):
    """How careful to be with a prompt."""

    NONE = auto()
    PROBE = auto()
    """Let the prompt begin alone, since a prompt that kills an engine mostly does so with the first token."""
    TRIAL = auto()
    """Let the prompt run alone to its end, since an engine died again after a probe."""


class Suspects:
    """Remembers what happened to engines while they had a prompt, until the prompt is done."""

    def __init__(self) -> None:
        self._deaths: defaultdict[Prompt, list[Life]] = defaultdict(list)
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
        """Drop every suspicion against a prompt that was done."""
        if self._deaths or self._failures:
            self._deaths.pop(prompt, None)
            self._failures.pop(prompt, None)

    def died(self, prompt: Prompt, life: Life) -> None:
        """Take note that an engine died with the prompt, and others, in it."""
        self._deaths[prompt].append(life)

    def failed(self, prompt: Prompt, moment: Moment, error: GroupError) -> None:
        """Take note that the prompt failed in an engine that goes on. Raises :class:`PromptFault` at the last time."""
        self._failures[prompt].add(moment)
        if len(self._failures[prompt]) >= FAILURES:
            fault = PromptFault(
                FAILS,
                f"{error}; {prompt.name} is dropped: it failed {FAILURES} times where others were done in between",
            )
            self._convict(prompt, fault)

    def killed(self, prompt: Prompt, error: GroupError) -> tuple[list[Life], PromptFault]:
        """Convict a prompt that killed an engine alone; returns the lives that it ended before, and the error."""
        lives = self._deaths.pop(prompt, [])
        fault = PromptFault(
            KILLS_ENGINES,
            f"{prompt.name} is dropped: engines died under it {len(lives) + 1} times, the last time with nothing else "
            f"in it: {error}",
        )
        self._convicted[prompt] = fault
        return lives, fault

    def words(self) -> str:
        """The prompts that most of the deaths have in common, for a diagnosis; "" if none were in two."""
        most = max((len(deaths) for deaths in self._deaths.values()), default=0)
        names = [prompt.name for prompt, deaths in self._deaths.items() if len(deaths) == most]
        return f"; in the engine at {most} deaths: {', '.join(names[:3])}" if most > 1 and len(names) <= 3 else ""

    def _convict(self, prompt: Prompt, fault: PromptFault) -> None:
        self.done(prompt)
        self._convicted[prompt] = fault
        raise fault
