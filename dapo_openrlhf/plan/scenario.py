"""What is to be predicted: the speeds of engines, trainer, rewards and weight sync, the work, and the settings."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """Seconds of one decode step of an engine: ``step + per_sequence * sequences + per_context_token * context``.

    ``context`` is the number of tokens of all running sequences, prompts included, whose keys and values are read.
    """

    step: float
    per_sequence: float = 0.0
    per_context_token: float = 0.0
    per_prompt_token: float = 0.0
    """Seconds of prefill for each token of a group's prompt, which its responses share; decoding waits meanwhile."""
    most_sequences: int = 256
    """Number of sequences that run at once; the others wait in order of arrival."""
    latency: float = 0.0
    """Seconds from the end of a group's last response until the controller has the group."""

    def seconds(self, steps: float, *, sequences: int, context: float) -> float:
        """Duration of ``steps`` decode steps with the same sequences, whose context grows by one token each a step."""
        first = self.step + self.per_sequence * sequences + self.per_context_token * context
        return steps * first + self.per_context_token * sequences * steps * max(0.0, steps - 1) / 2

    def steps(self, seconds: float, *, sequences: int, context: float) -> float:
        """Number of decode steps done in ``seconds``: the inverse of :meth:`seconds`, for at least one step."""
        growth = self.per_context_token * sequences / 2
        first = self.step + self.per_sequence * sequences + self.per_context_token * context
        if growth == 0 or seconds <= first:
            return seconds / first
        linear = first - growth
        return (math.sqrt(linear * linear + 4 * growth * seconds) - linear) / (2 * growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpeed:
    """Seconds of a training step: ``step + per_token * tokens``, prompts included, over all ranks."""

    step: float
    per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSpeed:
    """Seconds of a publication."""

    send: float
    """For which the trainer waits."""
    deliver: float
    """From then until the version is live in every engine."""
    pause: float
    """Of these, for which an engine generates nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How engines and trainer slow each other down where they share a device or the cores of a machine."""

    engine: float = 0.0
    """Decode steps take ``1 + engine`` times as long while the trainer trains."""
    trainer: float = 0.0
    """Training takes ``1 + trainer`` times as long while all engines generate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The responses to one prompt."""

    lengths: tuple[int, ...]
    """In tokens; G entries."""
    correct: tuple[bool, ...]
    reward_seconds: float | None = None
    """Duration of their scoring; None for that of all groups."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is generated: groups of responses, drawn again and again from ``samples``.

    What is known of all samples together is computed once, since a search asks for it for every split.
    """

    samples: Sequence[Sample]
    prompt_tokens: int
    reward_seconds: float
    """Duration of the scoring of a group."""

    @classmethod
    def drawn(
        cls, *, groups: int, responses: int, mean: float, spread: float, most: int, pass_rate: float,
        prompt_tokens: int, reward_seconds: float, seed: int = 0,
    ) -> Work:  # fmt: skip
        """Log-normal lengths of a mean and a coefficient of variation, cut off at ``most``.

        ``pass_rate`` is the share of groups that carry a gradient; in these every other response is right.
        """
        dice = random.Random(seed)
        sigma = math.sqrt(math.log(1 + spread * spread))
        mu = math.log(mean) - sigma * sigma / 2
        samples = []
        for _ in range(groups):
            lengths = tuple(min(most, max(1, round(dice.lognormvariate(mu, sigma)))) for _ in range(responses))
            mixed = dice.random() < pass_rate
            samples.append(Sample(lengths=lengths, correct=tuple(mixed and n % 2 == 0 for n in range(responses))))
        return cls(samples=samples, prompt_tokens=prompt_tokens, reward_seconds=reward_seconds)

    @cached_property
    def tokens_per_group(self) -> float:
        """Mean number of response tokens of a group."""
        return sum(sum(sample.lengths) for sample in self.samples) / len(self.samples)

    @cached_property
    def pass_rate(self) -> float:
        """Share of the groups in which some responses are right and some are not."""
        return sum(0 < sum(sample.correct) < len(sample.correct) for sample in self.samples) / len(self.samples)

    @cached_property
    def mean_progress(self) -> float:
        """Mean number of tokens that a running response has, over time: longer ones run longer."""
        lengths = [length for sample in self.samples for length in sample.lengths]
        return sum(length * length for length in lengths) / (2 * sum(lengths))

    @cached_property
    def longest(self) -> tuple[int, ...]:
        """Length of the longest response of each group, in ascending order."""
        return tuple(sorted(max(sample.lengths) for sample in self.samples))

    def prompts(self) -> list[Prompt]:
        """A prompt for each sample, whose id is the sample's place."""
        return [Prompt(id=index, text="", token_ids=(0,) * self.prompt_tokens) for index in range(len(self.samples))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run to predict."""

    engines: int
    engine: EngineSpeed
    trainer: TrainerSpeed
    sync: SyncSpeed
    work: Work
    batch_size: int
    """P, the number of groups in a step."""
    max_staleness: int
    """K."""
    filtered: bool = True
    """Whether groups without a gradient are dropped (dynamic sampling)."""
    over_sampling: float | None = None
    """Fixed factor, or None for the measured one; see ``async.over_sampling_factor``."""
    cut_late: bool = False
    """Whether groups at their deadline are cut instead of waited for."""
    sharing: Sharing = Sharing()
    steps: int = 24
    """Number of rollout steps, of which the first quarter is not counted."""
    seed: int = 0

    def at(self, max_staleness: int) -> Scenario:
        """The same with another K."""
        return replace(self, max_staleness=max_staleness)

    @property
    def responses(self) -> int:
        """G, the number of responses in a group."""
        return len(self.work.samples[0].lengths)
