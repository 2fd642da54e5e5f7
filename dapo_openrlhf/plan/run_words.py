"""A plan from a run in words: what was measured and fitted, the doubts, and other settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from dapo_openrlhf.plan.after import Variant
from dapo_openrlhf.plan.fit import Fitted
from dapo_openrlhf.plan.observed import Life
from dapo_openrlhf.plan.prediction import Prediction
from dapo_openrlhf.plan.words import figures

MISSED = 0.1
"""Relative error of the run's own step from which on the models are said to miss it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of a run's counted steps."""

    steps: int
    of_steps: int
    max_staleness: int
    step: float
    """Mean duration, without waiting for evaluations and checkpoints."""
    tokens_per_second: float
    ages: dict[int, int]

    @property
    def mean_age(self) -> float:
        """Mean policy age of the trained groups."""
        return sum(age * count for age, count in self.ages.items()) / sum(self.ages.values())

    def __str__(self) -> str:
        return (
            f"{self.steps} of {self.of_steps} steps at K = {self.max_staleness} are counted: {self.step:.3g} s a step, "
            f"{self.tokens_per_second:,.0f} trained tokens/s, mean age {self.mean_age:.2f}"
        )


def measured(life: Life) -> Measured:
    """The figures of a life."""
    steps = life.counted
    seconds = sum(step.seconds for step in steps)
    return Measured(
        steps=len(steps),
        of_steps=len(life.steps),
        max_staleness=life.begun.max_staleness,
        step=seconds / len(steps),
        tokens_per_second=sum(step.batch.response_tokens for step in steps) / max(seconds, 1e-9),
        ages=dict(Counter(age for step in steps for age in step.batch.ages)),
    )


def fitted_words(fitted: Fitted) -> str:
    """What was fitted, in two lines."""
    engine, trainer, sync, work = fitted.engine, fitted.trainer, fitted.sync, fitted.work
    lengths = [length for sample in work.samples for length in sample.lengths]
    sharing = fitted.sharing
    slowed = (
        f"; decoding {sharing.engine:.0%} slower during training, training {sharing.trainer:.0%} slower during decoding"
        if sharing.engine or sharing.trainer
        else ""
    )
    return (
        f"fitted: a decode step {_si(engine.step)}s + {_si(engine.per_sequence)}s a sequence + "
        f"{_si(engine.per_context_token)}s a token of context, prefill {_si(engine.per_prompt_token)}s a token "
        f"(groups within {fitted.engine_error:.0%}); training {_si(trainer.step)}s + {_si(trainer.per_token)}s a token{slowed}\n"
        f"        weights {_si(sync.send)}s to send, {_si(sync.deliver)}s to deliver, {_si(sync.pause)}s pause; scoring "
        f"{_si(work.reward_seconds)}s; responses of {fmean(lengths):.0f} tokens, the longest {max(lengths):,}; "
        f"{work.pass_rate:.0%} of the groups kept"
    )


def _si(seconds: float) -> str:
    """With three digits and a prefix for the unit that follows."""
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {prefix}"
    return "0 " if seconds < 5e-10 else f"{seconds / 1e-9:.3g} n"


def check(found: Measured, itself: Prediction) -> tuple[str, str | None]:
    """How well the models give the run itself, and a doubt if that is not well."""
    miss = itself.step / found.step - 1
    line = (
        f"check: the models give this run {itself.step:.3g} s a step ({miss:+.0%}) and a mean age of {itself.mean_age:.2f} "
        f"({itself.mean_age - found.mean_age:+.2f})"
    )
    if abs(miss) <= MISSED + itself.interval / found.step:
        return line, None
    return line, "the models miss the run's own step: trust differences between rows more than the rows"


def variant_lines(variants: Sequence[Variant]) -> list[str]:
    """A line for each of the other settings."""
    width = max((len(variant.name) for variant in variants), default=0)
    lines = []
    for variant in variants:
        what = variant.candidate.prediction
        cut = f", {what.cut_share:.1%} of the responses cut" if what.cut_share else ""
        lines.append(
            f"  {variant.name:<{width}}  {what.step:.3g} ± {what.interval:.2g} s, {what.tokens_per_second:,.0f} tokens/s, "
            f"mean age {what.mean_age:.2f}, waste {what.waste:.0%}{cut}"
        )
    return lines


def run_dict(found: Measured, fitted: Fitted, itself: Prediction, variants: Sequence[Variant]) -> dict[str, Any]:
    """Measured, fitted and other settings, in a form that JSON can hold."""
    models = asdict(fitted)
    work = models.pop("work")
    models |= {key: work[key] for key in ("prompt_tokens", "reward_seconds")}
    models |= {"tokens_per_group": fitted.work.tokens_per_group, "pass_rate": fitted.work.pass_rate}
    return {
        "measured": asdict(found) | {"mean_age": found.mean_age},
        "fitted": models,
        "check": {"step_seconds": itself.step, "mean_age": itself.mean_age},
        "variants": [{"name": variant.name} | figures(variant.candidate) for variant in variants],
    }
