"""Warnings about signs that a run learns nothing, each given once as soon as it appears (standard library only)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from dapo_openrlhf.pipeline.dynamic_sampling import ALL_RIGHT, ALL_WRONG
from dapo_openrlhf.pipeline.events import Event, GroupGenerated, GroupJudged, StepTrained

MOST_TRUNCATED = 0.95
"""Share of truncated responses, over a batch's worth of groups, from which on there is a warning."""

BATCHES_WITHOUT_KEPT = 2
"""Number of batches' worth of groups judged in a row without a kept one, after which there is a warning."""

FEWEST_GROUPS = 16
"""Fewest groups on which a warning about kept groups is based."""

ENDS = (
    "if they run on behind their answer, the token that ends them is not among those that the line 'responses end at' "
    "names: correct eos_token_id in the model's generation_config.json, or eos_token in its tokenizer_config.json; if they "
    "are cut off within their answer, raise rollout.max_new_tokens"
)


class Watch:
    """Turns a run's events into warnings."""

    def __init__(self, *, batch_size: int, max_new_tokens: int, say: Callable[[str], None]) -> None:
        """``batch_size``: number of groups in a step."""
        self._max_new_tokens = max_new_tokens
        self._say = say
        self._generated: deque[tuple[int, int]] = deque(maxlen=batch_size)  # truncated, responses
        self._most_in_vain = max(BATCHES_WITHOUT_KEPT * batch_size, FEWEST_GROUPS)
        self._in_vain: Counter[str] = Counter()
        self._said: set[str] = set()

    def add(self, event: Event) -> None:
        """Take in one event."""
        for kind, sentence in self._signs(event):
            if kind not in self._said:
                self._said.add(kind)
                self._say(f"warning: {sentence}")

    def _signs(self, event: Event) -> Iterator[tuple[str, str]]:
        match event:
            case GroupGenerated():
                self._generated.append((event.truncated, event.responses))
                yield from self._truncation()
            case GroupJudged(keep=True):
                self._in_vain.clear()
            case GroupJudged():
                self._in_vain[event.reason] += 1
                yield from self._vanity()
            case StepTrained():
                yield from self._idle_updates(event)

    def _truncation(self) -> Iterator[tuple[str, str]]:
        truncated, responses = (sum(counts) for counts in zip(*self._generated, strict=True))
        if len(self._generated) == self._generated.maxlen and truncated >= MOST_TRUNCATED * responses:
            ended = responses - truncated
            yield (
                "truncated",
                f"{f'only {ended}' if ended else 'none'} of the last {responses} responses ended by "
                f"{'themselves' if ended else 'itself'}: {truncated} of {responses} reached rollout.max_new_tokens "
                f"{self._max_new_tokens}; {ENDS}",
            )

    def _vanity(self) -> Iterator[tuple[str, str]]:
        if self._in_vain.total() >= self._most_in_vain:
            right, wrong = self._in_vain[ALL_RIGHT], self._in_vain[ALL_WRONG]
            yield (
                "no kept group",
                f"none of the last {self._in_vain.total()} groups is kept for training: {right} all right, {wrong} all "
                "wrong. Compare a few responses with their labels and the answer format that the reward expects; too hard "
                "or too easy problems, or too few rollout.n_samples_per_prompt, do the same",
            )

    def _idle_updates(self, event: StepTrained) -> Iterator[tuple[str, str]]:
        statistics, step = event.statistics, event.step + 1
        if empty := int(statistics.get("updates/empty", 0)):
            yield (
                "empty update",
                f"{empty} update(s) of step {step} trained not a single token, because all of their responses were "
                "truncated and reward.overlong_filtering_enable leaves those out; look at truncated_share, raise "
                "rollout.max_new_tokens, or use a larger train.batch_size",
            )
        elif statistics.get("grad_norm") == 0.0:
            yield (
                "no gradient",
                f"step {step} has a gradient of zero: nothing was learned from it. All rewards of each of its prompts are "
                "equal, or every token is clipped; algo.dynamic_filtering_enable true leaves such prompts out",
            )
