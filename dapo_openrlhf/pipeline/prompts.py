"""The endless stream of prompts (standard library)."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptState:
    """How far a run has come with its prompts."""

    drawn: int
    """Number of prompts taken from the endless stream."""
    returned: tuple[int, ...]
    """Ids of prompts to be given out again, before any others."""
    prompt_count: int
    """Number of prompts in the prompt set."""
    prompt_set: str = ""
    """Digest of the set's file and of which rows are prompts, to recognise the set; empty where it is not known."""
    dropped: tuple[int, ...] = ()
    """Ids of prompts that are not given out again."""


class NoPromptsLeft(RuntimeError):
    """Every prompt was dropped for good; the message gives the reasons."""


class PromptStream:
    """Endless prompts: each episode goes through the whole set once, in an order given by seed and episode."""

    def __init__(
        self, prompts: Sequence[Prompt], *, seed: int, state: PromptState | None = None, prompt_set: str = ""
    ) -> None:
        """``state``: where to resume; ``prompt_set``: as in :class:`PromptState`. Raises :class:`ConfigError` when
        ``state`` is of other prompts."""
        if not prompts:
            raise ValueError("the prompt set is empty")
        self._prompts = prompts
        self._prompt_set = prompt_set
        self._seed = seed
        self._returned: deque[Prompt] = deque()
        self._order = self._episodes()
        self._drawn = 0
        self._dropped: dict[int, str] = dict.fromkeys(state.dropped if state else (), "before the run was resumed")
        if state is not None:
            check_same_prompts(state, count=len(prompts), prompt_set=prompt_set)
            self._returned.extend(prompts[index] for index in state.returned)
            self._drawn = state.drawn
            deque(itertools.islice(self._order, state.drawn), maxlen=0)

    def _episodes(self) -> Iterator[Prompt]:
        episode = 0
        while True:
            order = list(range(len(self._prompts)))
            random.Random(f"{self._seed}/{episode}").shuffle(order)
            yield from (self._prompts[index] for index in order)
            episode += 1

    def next(self) -> Prompt:
        """The next prompt; one that was put back comes first. Raises :class:`NoPromptsLeft`."""
        while len(self._dropped) < len(self._prompts):
            if self._returned:
                prompt = self._returned.popleft()
            else:
                self._drawn += 1
                prompt = next(self._order)
            if prompt.id not in self._dropped:
                return prompt
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(self._dropped.values()).most_common())
        raise NoPromptsLeft(
            f"all {len(self._prompts)} prompts of data.prompt_dataset are dropped: {reasons}; events.jsonl names each "
            "(prompt_dropped); correct the rows, or look at whether model and tokenizer belong together"
        )

    def put_back(self, prompt: Prompt) -> None:
        """Return a prompt whose group failed, so that it is not lost."""
        self._returned.append(prompt)

    def drop(self, prompt: Prompt, reason: str) -> None:
        """Never give the prompt out again, neither in later episodes nor after a resume."""
        self._dropped[prompt.id] = reason

    def state(self, unfinished: Iterable[Prompt]) -> PromptState:
        """The state to resume from. ``unfinished``: prompts given out that have not been trained or dropped yet."""
        returned = tuple(p.id for p in (*unfinished, *self._returned) if p.id not in self._dropped)
        return PromptState(
            drawn=self._drawn,
            returned=returned,
            prompt_count=len(self._prompts),
            prompt_set=self._prompt_set,
            dropped=tuple(sorted(self._dropped)),
        )


def check_same_prompts(state: PromptState, *, count: int, prompt_set: str) -> None:
    """Raise :class:`ConfigError` when the state of a run's prompts is not of this prompt set."""
    if state.prompt_count != count:
        found = f"holds {count} prompts, the run to resume had {state.prompt_count}"
    elif state.prompt_set and prompt_set and state.prompt_set != prompt_set:
        found = f"holds {count} prompts, but not those of the run to resume, or other rows of it are skipped"
    else:
        return
    raise ConfigError(
        f"data.prompt_dataset: {found}; resume with the same prompts, or start a new run from the checkpoint: "
        "--config RUN/config.yaml --actor.model_name_or_path RUN/checkpoints/step-N"
    )
