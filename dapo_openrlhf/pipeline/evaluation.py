"""The results of an evaluation: the responses to each problem, and the figures computed from them (standard library).

A response that could not be generated or judged is an error: it is counted separately, and never as a wrong answer. All
accuracies are over the judged responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dapo_openrlhf.pipeline.eval_metrics import Estimate, maj_at_k, over_problems, pass_at_k, powers_of_two
from dapo_openrlhf.types import Prompt, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response to a problem."""

    text: str = ""
    """The response's text; empty if it was not generated, or texts were not asked for."""
    answer: str | None = None
    """The answer that the reward worker found in the text, normalised: equal for the same text or number."""
    correct: bool | None = None
    """Whether the response is right; None if it was not judged, for the reason in ``error``."""
    error: str = ""
    length: int = 0
    """Length of the response in tokens."""
    truncated: bool = False
    segments: tuple[Segment, ...] = ()
    """The text in parts, as policy and environment have written them; empty without an environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """All responses to one problem."""

    problem: Prompt
    responses: tuple[Response, ...]

    @property
    def judged(self) -> int:
        """n: number of responses with a score."""
        return sum(response.correct is not None for response in self.responses)

    @property
    def right(self) -> int:
        """c: number of right responses."""
        return sum(response.correct is True for response in self.responses)

    def majority(self, k: int) -> float:
        """maj@k of the problem. Right responses agree with each other, wrong ones if their answers are the same text or
        number."""
        wrong = [response.answer for response in self.responses if response.correct is False]
        votes = Counter(answer for answer in wrong if answer is not None)
        return maj_at_k(self.right, tuple(votes.values()), abstained=wrong.count(None), k=k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One measurement, in which at least one response is judged."""

    results: tuple[ProblemResult, ...]
    """The results of all problems, in the order of the problem set."""
    samples: int
    """Number of responses asked for to each problem."""
    seconds: float
    """Duration of the evaluation, without the start of workers."""
    with_texts: bool

    @property
    def accuracy(self) -> Estimate:
        """avg@n over the problems with a judged response."""
        return self._mean(lambda result: result.right / result.judged, k=1)

    def pass_at(self, k: int) -> Estimate:
        """pass@k over the problems with k judged responses."""
        return self._mean(lambda result: pass_at_k(result.judged, result.right, k), k=k)

    def majority_at(self, k: int) -> Estimate:
        """maj@k over the problems with k judged responses; needs texts."""
        if not self.with_texts:
            raise ValueError("a majority needs the responses' texts")
        return self._mean(lambda result: result.majority(k), k=k)

    def estimates(self) -> dict[str, Estimate]:
        """avg@n, and pass@k and maj@k for the powers of two up to n that enough responses were judged for."""
        named = {f"avg@{self.samples}": self.accuracy}
        most = max(result.judged for result in self.results)
        ks = [k for k in powers_of_two(self.samples) if k <= most]
        named |= {f"pass@{k}": self.pass_at(k) for k in ks}
        if self.with_texts:
            named |= {f"maj@{k}": self.majority_at(k) for k in ks if k > 1}
        return named

    @property
    def responses(self) -> list[Response]:
        """All responses, problem by problem."""
        return [response for result in self.results for response in result.responses]

    @property
    def errors(self) -> int:
        """Number of responses that were not judged."""
        return sum(response.correct is None for response in self.responses)

    def _mean(self, value: Callable[[ProblemResult], float], *, k: int) -> Estimate:
        """Mean of ``value`` over the problems with at least k judged responses."""
        covered = [result for result in self.results if result.judged >= k]
        return over_problems([value(result) for result in covered], [result.judged / k for result in covered])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """One measurement of every set of problems."""

    sets: Mapping[str, Evaluation]
    """By name, in the order of ``eval.dataset``, at least one. The name of a single set is empty, unless the user has given
    it one."""

    @property
    def first(self) -> Evaluation:
        """That of the first set, by which the run is judged where nothing else is said."""
        return next(iter(self.sets.values()))

    def values(self) -> dict[str, float]:
        """Every number by its name: the first set's, and ``NAME/accuracy``, ``NAME/pass@4`` and so on of sets with names."""
        numbers = {name: estimate.value for name, estimate in self.first.estimates().items()}
        for key, one in self.sets.items():
            if key:
                numbers[f"{key}/accuracy"] = one.accuracy.value
                numbers |= {f"{key}/{name}": estimate.value for name, estimate in one.estimates().items()}
        return numbers
