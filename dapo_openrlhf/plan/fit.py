"""Everything that a simulation needs, fitted to one life of a run."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from dapo_openrlhf.plan.engine_fit import Conditions, fit_engines
from dapo_openrlhf.plan.least_squares import Array, error_of, least_squares
from dapo_openrlhf.plan.observed import Group, Life, Step, Window, overlap, union
from dapo_openrlhf.plan.run_settings import RunSettings
from dapo_openrlhf.plan.scenario import EngineSpeed, Sample, Scenario, Sharing, SyncSpeed, TrainerSpeed, Work

MOST_GROUPS = 6000
"""A fit takes the last steps with about so many groups."""
SLOWED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)
"""How much longer decoding may take during training, and training while engines generate."""
EVIDENCE = 0.15
"""Share of the squared error by which that must lessen it to be believed; there are few steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The models of a run."""

    engine: EngineSpeed
    engine_error: float
    """Root mean square of the relative errors of the groups' durations."""
    trainer: TrainerSpeed
    sync: SyncSpeed
    sharing: Sharing
    work: Work

    def scenario(self, settings: RunSettings, *, steps: int, seed: int) -> Scenario:
        """The run itself, as a scenario."""
        return Scenario(
            engines=settings.engines,
            engine=self.engine,
            trainer=self.trainer,
            sync=self.sync,
            work=self.work,
            batch_size=settings.batch_size,
            max_staleness=settings.max_staleness,
            filtered=settings.filtered,
            over_sampling=settings.over_sampling,
            cut_late=settings.cut_late,
            sharing=self.sharing,
            steps=steps,
            seed=seed,
        )


class Material:
    """What is fitted to: the counted steps of a life and the groups in them."""

    def __init__(self, life: Life, settings: RunSettings) -> None:
        self.settings = settings
        self.steps = _recent(life)
        begin = self.steps[0].begin
        self.groups = [group for group in life.groups.values() if group.end > begin and group.lengths]
        ends = [step.end for step in self.steps]
        self._step_of = [bisect_left(ends, group.end) for group in self.groups]
        self._undisturbed = [life.undisturbed((group.begin, group.end)) for group in self.groups]
        training = [step.training for step in life.steps if step.end >= begin]
        pauses: dict[int, list[Window]] = {}
        for span in life.spans:
            if span.kind == "load_weights" and span.end > begin and (number := span.worker.split()[-1]).isdigit():
                pauses.setdefault(int(number), []).append((span.start, span.end))
        self._conditions = Conditions(
            training=union(training),
            pauses={engine: union(windows) for engine, windows in pauses.items()},
            most_sequences=settings.most_sequences,
        )
        unfinished = [(dispatched, life.end) for dispatched in life.unfinished.values()]
        windows = [window for window in [*life.given_up, *unfinished] if window[0] >= begin]
        self._given_up = [end - start for start, end in windows]
        self._occupants = _occupants(self.groups, windows)
        self._generating = _Generating([*self.groups, *self._occupants])
        self._sync = _sync(life, self.steps, self._conditions.pauses)

    def fit(self) -> Fitted:
        """Fit to all steps."""
        return self._fit(None, Sharing())

    def fit_again(self, dice: random.Random, sharing: Sharing) -> Fitted:
        """Fit to as many steps drawn with replacement; what sharing costs is given."""
        return self._fit(dice, sharing)

    def _fit(self, dice: random.Random | None, sharing: Sharing) -> Fitted:
        tried = SLOWED if self.settings.shared and dice is None else None
        count = len(self.steps)
        drawn = range(count) if dice is None else [dice.randrange(count) for _ in range(count)]
        times = np.bincount(np.array(drawn), minlength=count).astype(float)
        seldom = np.append(times, 0.0 if dice else 1.0)  # groups that ended after the last step
        usable = np.array([
            float(seldom[step]) if fine else 0.0
            for step, fine in zip(self._step_of, self._undisturbed, strict=True)
        ])  # fmt: skip
        if not usable.any():
            usable = np.array([1.0] * len(self.groups))
        engine = fit_engines(
            [*self.groups, *self._occupants],
            np.append(usable, np.zeros(len(self._occupants))),
            self._conditions,
            slowed=tried or [sharing.engine],
        )
        trainer, slowed = self._trainer([self.steps[index] for index in drawn], tried or [sharing.trainer])
        samples = self._samples(dice)
        return Fitted(
            engine=engine.speed(most_sequences=self.settings.most_sequences),
            engine_error=engine.error,
            trainer=trainer,
            sync=self._sync,
            sharing=Sharing(engine=engine.slowed, trainer=slowed),
            work=Work(
                samples=samples,
                prompt_tokens=max(1, round(fmean(group.prompt_tokens for group in self.groups))),
                reward_seconds=fmean(sample.reward_seconds or 0.0 for sample in samples),
            ),
        )

    def _trainer(self, steps: Sequence[Step], tried: Sequence[float]) -> tuple[TrainerSpeed, float]:
        prompt = fmean(group.prompt_tokens for group in self.groups)
        tokens = np.array([step.batch.response_tokens + prompt * step.batch.responses for step in steps])
        seconds = np.array([step.trained.seconds for step in steps])
        generating = np.array([self._generating.share(step.training) for step in steps])
        columns = np.stack([np.ones_like(tokens), tokens], axis=1)
        weights = 1 / np.sqrt(np.maximum(seconds, 1e-6))

        def fit(slowed: float) -> tuple[float, Array]:
            pace = 1 / ((1 - generating) + generating / (1 + slowed))
            found = least_squares(columns * pace[:, None], seconds, weights)
            return error_of(columns * pace[:, None], seconds, weights, found), found

        fits = {slowed: fit(slowed) for slowed in tried}
        best = min(fits, key=lambda slowed: fits[slowed][0])
        varied = np.ptp(generating) > 0.2 and len(steps) > 4
        if not varied or fits[best][0] >= fits[tried[0]][0] * (1 - EVIDENCE):
            best = tried[0]
        found = fits[best][1]
        return TrainerSpeed(step=float(found[0]), per_token=float(found[1])), best

    def _samples(self, dice: random.Random | None) -> list[Sample]:
        """A sample for each group, and for each that was given up one of those that took longer than it had lasted."""
        whole = [group for group in self.groups if not group.cut and group.keep is not None] or self.groups
        chosen = [*whole, *_longer(whole, self._given_up, dice or random.Random(0))]
        if dice is not None:
            chosen = dice.choices(chosen, k=len(chosen))
        return [_sample(group, filtered=self.settings.filtered) for group in chosen]


def _longer(groups: Sequence[Group], lasted: Sequence[float], dice: random.Random) -> Iterator[Group]:
    """For each of these durations a group that took longer; the one that took longest where none did."""
    ordered = sorted(groups, key=lambda group: group.seconds)
    seconds = [group.seconds for group in ordered]
    for duration in lasted:
        first = min(bisect_left(seconds, duration), len(ordered) - 1)
        yield ordered[dice.randrange(first, len(ordered))]


def _occupants(groups: Sequence[Group], windows: Sequence[Window]) -> list[Group]:
    """Groups that were given up, as far as they are thought to have come, on engines in turn: they slowed others down."""
    engines = sorted({group.engine for group in groups})
    found = []
    longer = _longer(groups, [end - begin for begin, end in windows], random.Random(0))
    for index, ((begin, end), group) in enumerate(zip(windows, longer, strict=True)):
        made = max(1, int(group.longest * min(1.0, (end - begin) / max(group.seconds, 1e-9))))
        lengths = tuple(min(length, made) for length in group.lengths)
        engine = engines[index % len(engines)]
        found.append(replace(group, engine=engine, begin=begin, end=end, lengths=lengths))
    return found


def _recent(life: Life) -> Sequence[Step]:
    """The last of the counted steps, with about :data:`MOST_GROUPS` groups."""
    each = max(1.0, len(life.groups) / len(life.steps))
    return life.counted[-max(2, int(MOST_GROUPS / each)) :]


def _sync(life: Life, steps: Sequence[Step], pauses: Mapping[int, Sequence[Window]]) -> SyncSpeed:
    """Means of the publications of these steps."""
    send = fmean(step.laps.get("send", 0.0) for step in steps)
    live = life.publications[-len(steps) :]
    whole = fmean(publication.seconds for publication in live) if live else send
    windows = [end - begin for windows in pauses.values() for begin, end in windows]
    deliver = max(0.0, whole - send)
    return SyncSpeed(send=send, deliver=deliver, pause=min(deliver, fmean(windows)) if windows else 0.0)


def _sample(group: Group, *, filtered: bool) -> Sample:
    """The group as simulations draw it: mixed if it was kept, all wrong if not."""
    mixed = group.keep is not False or not filtered
    return Sample(
        lengths=group.lengths,
        correct=tuple(mixed and index % 2 == 0 for index in range(len(group.lengths))),
        reward_seconds=group.reward_seconds,
    )


class _Generating:
    """When engines generated, by their groups."""

    def __init__(self, groups: Sequence[Group]) -> None:
        engines = {group.engine for group in groups}
        self._busy = {
            engine: union((group.begin, group.end) for group in groups if group.engine == engine) for engine in engines
        }

    def share(self, window: Window) -> float:
        """Mean share of a time in which an engine generated, 0 to 1."""
        length = max(window[1] - window[0], 1e-9)
        return fmean(overlap(window, busy) / length for busy in self._busy.values())
