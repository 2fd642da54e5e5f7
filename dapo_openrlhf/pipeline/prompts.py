"""The endless stream of prompts (standard library)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.mixture import Drawing, Mixture, SetState
from dapo_openrlhf.types import Prompt

PASS_BY_PASS = Drawing()

RETURNED = "returned"
"""Reason of a prompt that was given out before, and that its group's failure or surplus has returned."""


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
    sets: tuple[SetState, ...] = ()
    """How far the run has come with each set; empty in checkpoints of earlier versions, which had one."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The state out of JSON. Raises ``KeyError``, ``TypeError`` or another error for values of another form."""
        return cls(
            drawn=values["drawn"],
            returned=tuple(values["returned"]),
            prompt_count=values["prompt_count"],
            prompt_set=values.get("prompt_set", ""),
            dropped=tuple(values.get("dropped", ())),  # none in checkpoints of earlier versions
            sets=tuple(map(SetState.read, values.get("sets", ()))),
        )


class Given(NamedTuple):
    """A prompt that is given out."""

    prompt: Prompt
    reason: str
    """Why it is this one: ``returned``, or the reason of a draw."""


class NoPromptsLeft(RuntimeError):
    """Every prompt was dropped for good; the message gives the reasons."""


class PromptStream:
    """Endless prompts: those that were returned, and otherwise those that are drawn."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        drawing: Drawing = PASS_BY_PASS,
        state: PromptState | None = None,
        prompt_set: str = "",
    ) -> None:
        """``drawing``: by default pass by pass, each in an order given by seed and number of the pass. ``state``: where to
        resume; ``prompt_set``: as in :class:`PromptState`. Raises :class:`ConfigError` when ``state`` is of other
        prompts."""
        if not prompts:
            raise ValueError("the prompt set is empty")
        self._prompts = prompts
        self._prompt_set = prompt_set
        self._returned: deque[Prompt] = deque()
        self._drawn = 0
        self._dropped: dict[int, str] = dict.fromkeys(state.dropped if state else (), "before the run was resumed")
        sets: tuple[SetState, ...] = ()
        if state is not None:
            check_same_prompts(state, count=len(prompts), prompt_set=prompt_set)
            self._returned.extend(prompts[index] for index in state.returned)
            self._drawn = state.drawn
            sets = state.sets or (SetState(drawn=state.drawn),)
        self._order = Mixture(len(prompts), drawing, seed=seed, states=sets)
        for prompt in self._dropped:
            self._order.drop(prompt)

    def next(self) -> Given:
        """The next prompt; one that was put back comes first. Raises :class:`NoPromptsLeft`."""
        while len(self._dropped) < len(self._prompts):
            if self._returned:
                given = Given(self._returned.popleft(), RETURNED)
            else:
                self._drawn += 1
                draw = self._order.next()
                given = Given(self._prompts[draw.prompt], draw.reason)
            if given.prompt.id not in self._dropped:
                return given
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(self._dropped.values()).most_common())
        raise NoPromptsLeft(
            f"all {len(self._prompts)} prompts of data.prompt_dataset are dropped: {reasons}; events.jsonl names each "
            "(prompt_dropped); correct the rows, or look at whether model and tokenizer belong together"
        )

    def learn(self, prompt: Prompt, rate: float, responses: int) -> None:
        """Learn that a share ``rate``, 0 to 1, of ``responses`` responses to the prompt is right."""
        self._order.learn(prompt.id, rate, responses)

    def put_back(self, prompt: Prompt) -> None:
        """Return a prompt whose group failed, so that it is not lost."""
        self._returned.append(prompt)

    def drop(self, prompt: Prompt, reason: str) -> None:
        """Never give the prompt out again, neither in later episodes nor after a resume."""
        self._dropped[prompt.id] = reason
        self._order.drop(prompt.id)

    def state(self, unfinished: Iterable[Prompt]) -> PromptState:
        """The state to resume from. ``unfinished``: prompts given out that have not been trained or dropped yet."""
        returned = tuple(p.id for p in (*unfinished, *self._returned) if p.id not in self._dropped)
        return PromptState(
            drawn=self._drawn,
            returned=returned,
            prompt_count=len(self._prompts),
            prompt_set=self._prompt_set,
            dropped=tuple(sorted(self._dropped)),
            sets=self._order.states(),
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
