"""Reads the steps of a stock run from the metrics that OpenRLHF writes for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.bench.arm import ArmSettings

PASS_RATE = "dynamic_filtering_pass_rate"
"""Name of a metric that is there where groups are filtered."""
NEEDED = (
    "rollout/response_length_mean", "timing/broadcast", "timing/generation", "timing/make_experience", "timing/ppo_train",
)  # fmt: skip
"""Names of the metrics of a step that is written in full."""


@dataclass(frozen=True, kw_only=True)
class StockStep:
    """One complete step, as measured by OpenRLHF's own metrics."""

    finished: float
    """End of the step, in seconds since the start of the process."""
    generation: float
    """Seconds for generating the batch that was trained."""
    make_experience: float
    """Seconds for log-probs of the old policy and advantages."""
    ppo_train: float
    """Seconds for all gradient updates."""
    broadcast: float
    """Seconds for the transfer of weights, waiting for the engine included."""
    response_tokens: float
    """Number of response tokens trained."""
    generated_groups: float
    """Number of groups generated to fill the batch, the filtered ones included."""


def read_scalars(folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """TensorBoard scalars under ``train/``: name -> step -> (wall-clock time in seconds, value)."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    scalars: dict[str, dict[int, tuple[float, float]]] = {}
    for run in sorted(folder.glob("*")):
        events = EventAccumulator(str(run), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            known = scalars.setdefault(tag.removeprefix("train/"), {})
            known.update({event.step: (event.wall_time, event.value) for event in events.Scalars(tag)})
    return scalars


def complete_steps(
    scalars: Mapping[str, Mapping[int, tuple[float, float]]],
    settings: ArmSettings,
    started: float,
    *,
    observed_tokens: int = 0,
) -> Iterator[StockStep]:
    """Yield the steps that trained a whole batch, in order. ``started`` is the wall-clock time of the start.

    Stock's length of a response reaches from its first action to the end of its last; the ``observed_tokens`` of an
    environment in between are not trained.
    """
    wanted = settings.batch_size * settings.n_samples_per_prompt
    needed = {*NEEDED, *({PASS_RATE} & scalars.keys())}
    for step, (finished, responses) in sorted(scalars.get("rollout/num_samples", {}).items()):
        values = {name: series[step][1] for name, series in scalars.items() if step in series}
        if responses < wanted or not needed <= values.keys():
            continue
        yield StockStep(
            finished=finished - started,
            generation=values["timing/generation"],
            make_experience=values["timing/make_experience"],
            ppo_train=values["timing/ppo_train"],
            broadcast=values["timing/broadcast"],
            response_tokens=responses * (values["rollout/response_length_mean"] - observed_tokens),
            # OpenRLHF's "pass rate" is trained responses over generated groups, in percent; without a filter there is none.
            generated_groups=100.0 * responses / values.get(PASS_RATE, 100.0 * settings.n_samples_per_prompt),
        )
