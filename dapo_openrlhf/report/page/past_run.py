"""What a run's folder says of it, read from whatever is left in it (standard library only)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.yaml_text import flat
from dapo_openrlhf.pipeline.event_file import is_log
from dapo_openrlhf.pipeline.event_log import read_what_is_left
from dapo_openrlhf.pipeline.events import Evaluated, Event, Rewound, RunStarted, TrainerReplaced, UpdateSkipped
from dapo_openrlhf.pipeline.losses import words_of_engines
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.metrics_file import read_rows
from dapo_openrlhf.report.notices import rewound
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.run_lock import is_being_written
from dapo_openrlhf.report.secrets import without_secrets

MOST_NOTICES = 200
PROBLEMS_SHOWN = 3
SAMPLES_SHOWN = 6
MOST_LINES = 400
"""Lines of an evaluation's responses that are looked through for the problems that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response to a problem of an evaluation, after a number of steps."""

    step: int
    prompt: str
    label: str
    response: str
    verdict: str
    length: str


@dataclass(slots=True, kw_only=True)
class PastRun:
    """One run, finished or not."""

    folder: Path
    label: str
    """Name by which it is told from the other runs of a page."""
    rows: Mapping[int, Row]
    """By rollout steps done."""
    settings: Mapping[str, object]
    """By dotted name, without secrets."""
    evaluations: dict[int, Evaluated] = field(default_factory=dict)
    """By rollout steps done, without what was undone."""
    notices: list[str] = field(default_factory=list)
    """What happened besides its progress."""
    turns: list[int] = field(default_factory=list)
    """Rollout steps done where the run was resumed, or went back to a checkpoint."""
    max_staleness: int | None = None
    answers: Sequence[Answer] = ()
    samples: Sequence[Answer] = ()
    """Responses of training, from its first to its last step."""
    damage: list[str] = field(default_factory=list)
    """What could not be read."""
    being_written: bool = False

    @property
    def steps(self) -> int:
        """Rollout steps done, as far as is recorded."""
        return max([0, *self.rows, *self.evaluations])

    @property
    def state(self) -> str:
        """Whether the run has ended, and where."""
        most = self.settings.get("train.max_steps")
        if self.being_written:
            return f"running, {self.steps} of {most} steps" if most else f"running, {self.steps} steps"
        if isinstance(most, int) and self.steps < most:
            return f"ended after {self.steps} of {most} steps"
        return f"done, {self.steps} steps"


def read_runs(folders: Sequence[Path]) -> list[PastRun]:
    """The runs of these folders, each once. Raises :class:`ConfigError` for a folder that is none's."""
    places = list(dict.fromkeys(folder.resolve() for folder in map(_checked, folders)))
    return [_read(place, label) for place, label in zip(places, _labels(places), strict=True)]


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder")
    run = RunFolder(path=folder)
    if is_log(run.events) or run.metrics.is_file():
        return folder
    inside = sorted(str(file.parent) for file in folder.glob("*/events.jsonl") if not file.parent.is_symlink())
    hint = f"; there are runs in it: {' '.join(inside[:5])}" if inside else ""
    raise ConfigError(f"{folder} is no run's folder: it has neither events.jsonl nor metrics.jsonl{hint}")


def _labels(places: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of what is before them as it takes to tell them apart."""
    for parts in range(1, max(len(place.parts) for place in places) + 1):
        labels = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(labels)) == len(labels):
            return labels
    return [str(place) for place in places]


def _read(place: Path, label: str) -> PastRun:
    folder = RunFolder(path=place)
    settings, trouble = _settings(folder.config)
    lines: list[int] = []
    rows = read_rows(folder.metrics, lines.append)
    if lines:
        trouble.append(f"{len(lines)} lines of metrics.jsonl could not be read, the first is line {lines[0]}")
    run = PastRun(
        folder=place,
        label=label,
        rows={step + 1: row for step, row in rows.items()},
        settings=settings,
        damage=trouble,
        being_written=is_being_written(place),
    )
    _read_events(folder.events, run)
    run.answers = _answers(_responses(place / "eval", run), run.damage)
    run.samples = _samples(folder.samples)
    return run


def _settings(file: Path) -> tuple[Mapping[str, object], list[str]]:
    try:
        settings = without_secrets(flat(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return {}, [f"config.yaml could not be read: {error}"]
    assert isinstance(settings, Mapping)
    return settings, []


def _read_events(file: Path, run: PastRun) -> None:
    if not is_log(file):
        run.damage.append("events.jsonl is not there")
        return
    lines: list[int] = []
    for logged in read_what_is_left(file, lines.append):
        _add(run, logged.event)
    if lines:
        run.damage.append(f"{len(lines)} lines of events.jsonl could not be read, the first is line {lines[0]}")


def _add(run: PastRun, event: Event) -> None:
    match event:
        case RunStarted():
            run.max_staleness = event.max_staleness
            if event.first_step:
                _undo(run, event.first_step)
                _notice(run, f"resumed after {event.first_step} steps")
        case Rewound():
            _undo(run, event.to_step)
            _notice(run, rewound(event))
        case TrainerReplaced():
            _notice(run, f"a new trainer went on after {event.step} steps")
        case UpdateSkipped():
            _notice(run, f"update {event.update} of step {event.step + 1} was stopped: its numbers were not finite")
        case Evaluated():
            run.evaluations[event.step] = event
        case _:
            if words := words_of_engines(event):
                _notice(run, words)


def _undo(run: PastRun, steps: int) -> None:
    run.turns.append(steps)
    run.evaluations = {step: one for step, one in run.evaluations.items() if step <= steps}


def _notice(run: PastRun, words: str) -> None:
    if len(run.notices) < MOST_NOTICES:
        run.notices.append(words)


# --------------------------------------------------------------------------------------------------------- responses


def _responses(folder: Path, run: PastRun) -> dict[int, Path]:
    """The file of every evaluation by its step, of several sets that of the one that was first in the last evaluation."""
    last = run.evaluations[max(run.evaluations)].sets if run.evaluations else {}
    files = [*folder.glob("step-*.jsonl"), *(folder / next(iter(last), "")).glob("step-*.jsonl")]
    return {int(number): file for file in files if (number := file.stem[5:]).isdecimal()}


def _answers(files: Mapping[int, Path], damage: list[str]) -> list[Answer]:
    """For a few problems the first response of every evaluation. ``files``: by step."""
    answers: list[Answer] = []
    for step in sorted(files):
        try:
            found = [_answer(step, row) for row in _first_rows(files[step])]
        except OSError as error:
            damage.append(f"{files[step].name} could not be read: {error}")
            continue
        if not found:
            damage.append(f"{files[step].name} has no response that could be read")
        answers += found
    return answers


def _samples(file: Path) -> list[Answer]:
    """Some of the samples of training, evenly over the run; the others are not parsed."""
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        count = sum(1 for _ in lines)
    wanted = {round(place * (count - 1) / (SAMPLES_SHOWN - 1)) for place in range(SAMPLES_SHOWN)}
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        rows = [_row(line) for number, line in enumerate(lines) if number in wanted]
    return [_answer(step, row) for row in rows if row is not None and isinstance(step := row.get("step"), int)]


def _row(line: str) -> Mapping[str, object] | None:
    """A line with a prompt and a response; None for another."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    texts = (row.get("prompt"), row.get("response")) if isinstance(row, dict) else ()
    return row if texts and all(isinstance(text, str) for text in texts) else None


def _first_rows(file: Path) -> Iterator[Mapping[str, object]]:
    seen: set[str] = set()
    with file.open(encoding="utf-8", errors="replace") as lines:
        for _, line in zip(range(MOST_LINES), lines, strict=False):
            row = _row(line)
            if row is not None and row["prompt"] not in seen:
                seen.add(str(row["prompt"]))
                yield row
                if len(seen) == PROBLEMS_SHOWN:
                    return


def _answer(step: int, row: Mapping[str, object]) -> Answer:
    correct = row.get("correct")
    return Answer(
        step=step,
        prompt=str(row["prompt"]),
        label=str(row.get("label")),
        response=str(row["response"]),
        verdict="right" if correct is True else "wrong" if correct is False else "not judged",
        length=(f"{row['length']} tokens" if "length" in row else f"{row.get('characters')} characters")
        + (", truncated" if row.get("truncated") is True else ""),
    )
