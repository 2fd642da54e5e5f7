"""Writes every response of an evaluation with its verdict to a JSON-lines file (standard library only)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dapo_openrlhf.pipeline.evaluation import Evaluation
from dapo_openrlhf.pipeline.events import Evaluated, Event
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.whole_file import whole_file


class ResponsesError(ValueError):
    """A file does not hold responses; the message names file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedProblem:
    """The counts of verdicts on one problem."""

    prompt: str
    label: object
    judged: int
    right: int

    @property
    def accuracy(self) -> float:
        """Share of right answers among the judged ones; at least one is judged."""
        return self.right / self.judged


class Responses(Sink):
    """Writes the responses of every evaluation to a file of their own, one for each set."""

    name = "the responses of an evaluation"

    def __init__(self, path_of: Callable[[int, str], Path]) -> None:
        """``path_of``: returns the file for the evaluation after a number of steps, of the set with a name or without one."""
        self._path_of = path_of

    def event(self, event: Event) -> None:
        """Write an evaluation's responses."""
        if isinstance(event, Evaluated) and event.measured is not None:
            for key, one in event.measured.sets.items():
                write_responses(self._path_of(event.step, key), one)


def write_responses(path: Path, evaluation: Evaluation) -> None:
    """Write one line per response; the file is replaced atomically.

    Columns: ``problem`` (its place in the set, from 0), ``prompt``, ``label``, ``sample`` (from 0), ``response``,
    ``answer`` (null: none found), ``correct`` (null: not judged, see ``error``), ``error``, ``length`` (tokens),
    ``truncated``; with an environment also ``segments``, the response in parts: ``kind`` (``action`` or
    ``observation``), ``text``, ``tokens``, ``reward`` (null: none was given).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for result in evaluation.results:
            for sample, response in enumerate(result.responses):
                line = {
                    "problem": result.problem.id,
                    "prompt": result.problem.text,
                    "label": result.problem.label,
                    "sample": sample,
                    "response": response.text,
                    "answer": response.answer,
                    "correct": response.correct,
                    "error": response.error,
                    "length": response.length,
                    "truncated": response.truncated,
                }
                if response.segments:
                    line["segments"] = [asdict(segment) for segment in response.segments]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_verdicts(path: Path) -> dict[str, JudgedProblem]:
    """The problems of a file by prompt, in its order; a problem without any verdict has ``judged`` 0.

    Raises :class:`ResponsesError`.
    """
    problems: dict[str, JudgedProblem] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ResponsesError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, label, correct = row["prompt"], row["label"], row["correct"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResponsesError(
                f"{path}, line {number}: no response with prompt, label and correct, as `eval --responses` writes it: "
                f"{error!r}"
            ) from error
        before = problems.get(prompt, JudgedProblem(prompt=prompt, label=label, judged=0, right=0))
        if before.label != label:
            raise ResponsesError(f"{path}, line {number}: label {label!r} of a problem that had {before.label!r}")
        problems[prompt] = JudgedProblem(
            prompt=prompt,
            label=label,
            judged=before.judged + (correct is not None),
            right=before.right + (correct is True),
        )
    return problems
