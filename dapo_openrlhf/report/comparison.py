"""Compares two evaluations of the same problems, problem by problem (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dapo_openrlhf.pipeline.eval_metrics import FEWEST_PAIRS, Estimate, paired_difference
from dapo_openrlhf.report.responses import JudgedProblem, ResponsesError

SHOWN = 10
PROMPT_SHOWN = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One problem that is in both evaluations."""

    first: JudgedProblem
    second: JudgedProblem

    @property
    def difference(self) -> float:
        """The second accuracy minus the first, -1 to 1."""
        return self.second.accuracy - self.first.accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of the problems that were judged in both evaluations."""

    pairs: tuple[Pair, ...]
    """The problems of both evaluations, at least one."""
    left_out: int
    """Number of problems that only one of the two has, or that one of them could not judge."""
    difference: Estimate
    """Mean difference with its paired interval over problems."""

    @property
    def accuracies(self) -> tuple[float, float]:
        """Mean accuracy of the first and of the second, over the pairs."""
        count = len(self.pairs)
        first = sum(pair.first.accuracy for pair in self.pairs) / count
        return first, sum(pair.second.accuracy for pair in self.pairs) / count

    @property
    def wins(self) -> int:
        """Number of problems that are answered right more often in the second."""
        return sum(pair.difference > 0 for pair in self.pairs)

    @property
    def losses(self) -> int:
        """Number of problems that are answered right less often in the second."""
        return sum(pair.difference < 0 for pair in self.pairs)

    def most_changed(self, count: int) -> list[Pair]:
        """The problems with the largest differences in either direction."""
        changed = [pair for pair in self.pairs if pair.difference]
        return sorted(changed, key=lambda pair: -abs(pair.difference))[:count]

    def as_dict(self) -> dict[str, object]:
        """The comparison in a form that JSON can hold."""
        difference, (first, second) = self.difference, self.accuracies
        return {
            "problems": len(self.pairs),
            "left_out": self.left_out,
            "first": first,
            "second": second,
            "difference": {"value": difference.value, **_bounds(difference)},
            "wins": self.wins,
            "losses": self.losses,
            "ties": len(self.pairs) - self.wins - self.losses,
            "by_problem": [
                {
                    "prompt": pair.first.prompt,
                    "label": pair.first.label,
                    "first": pair.first.accuracy,
                    "second": pair.second.accuracy,
                    "difference": pair.difference,
                }
                for pair in self.pairs
            ],
        }

    def __str__(self) -> str:
        difference, (first, second) = self.difference, self.accuracies
        points = [f"{100 * value:+.1f}" for value in (difference.value, difference.low, difference.high)]
        sure = (
            f"95 % interval {points[1]} to {points[2]} (paired, over problems)"
            if len(self.pairs) >= FEWEST_PAIRS
            else f"no interval: it takes at least {FEWEST_PAIRS} problems"
        )
        ties = len(self.pairs) - self.wins - self.losses
        lines = [
            f"{first:.1%} -> {second:.1%} on {len(self.pairs)} problem{'s'[: len(self.pairs) > 1]}: {points[0]} percentage points, {sure}",
            f"{self.wins} better, {self.losses} worse, {ties} equal"
            + (f"; {self.left_out} left out, not judged in both" if self.left_out else ""),
        ]
        frame = _frame([pair.first.prompt for pair in self.pairs])
        for pair in self.most_changed(SHOWN):
            shown = _shortened(pair.first.prompt, frame)
            lines.append(f"  {pair.first.accuracy:5.0%} -> {pair.second.accuracy:4.0%}  {shown}")
        return "\n".join(lines)


def _bounds(difference: Estimate) -> dict[str, float | None]:
    """The bounds of the interval; null where there are too few problems for one."""
    if difference.problems < FEWEST_PAIRS:
        return {"low": None, "high": None}
    return {"low": difference.low, "high": difference.high}


def _frame(prompts: Sequence[str]) -> tuple[int, int]:
    """Lengths of the common beginning and end of all prompts, such as a wrapper; both 0 if there is only one prompt."""
    if len(set(prompts)) == 1:
        return 0, 0
    before = _common_start(prompts)
    behind = _common_start([prompt[len(before) :][::-1] for prompt in prompts])
    return max(before.rfind(" "), before.rfind("\n")) + 1, len(behind)


def _common_start(texts: Sequence[str]) -> str:
    """The common beginning of all texts. In lexicographic order the first and the last have the least in common."""
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _shortened(prompt: str, frame: tuple[int, int]) -> str:
    """A short prompt unchanged; of a long one the beginning of what distinguishes it from the others."""
    if len(prompt) > PROMPT_SHOWN:
        before, behind = frame
        prompt = prompt[before : len(prompt) - behind]
    prompt = " ".join(prompt.split())
    return prompt if len(prompt) <= PROMPT_SHOWN else prompt[:PROMPT_SHOWN] + "..."


def compare_verdicts(first: Mapping[str, JudgedProblem], second: Mapping[str, JudgedProblem]) -> Comparison:
    """Pair problems by their prompts. Raises ``ResponsesError`` if none is in both, or labels differ."""
    shared = [prompt for prompt in first if prompt in second]
    for prompt in shared:
        if first[prompt].label != second[prompt].label:
            raise ResponsesError(
                f"the problem {prompt[:PROMPT_SHOWN]!r} has the label {first[prompt].label!r} in one file and "
                f"{second[prompt].label!r} in the other; evaluate both on the same file"
            )
    pairs = tuple(
        Pair(first=first[prompt], second=second[prompt])
        for prompt in shared
        if first[prompt].judged and second[prompt].judged
    )
    if not pairs:
        raise ResponsesError(
            f"no problem was judged in both files ({len(first)} and {len(second)} problems, {len(shared)} of them the "
            "same); evaluate both on the same file"
        )
    return Comparison(
        pairs=pairs,
        left_out=len(first.keys() | second.keys()) - len(pairs),
        difference=paired_difference(
            [pair.difference for pair in pairs], [min(pair.first.judged, pair.second.judged) for pair in pairs]
        ),
    )
