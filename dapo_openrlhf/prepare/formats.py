"""The columns in which public data sets keep problem and answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.bad_rows import BadRow
from dapo_openrlhf.dataset.chat import chat_list, to_be_answered
from dapo_openrlhf.dataset.rows import column, column_names
from dapo_openrlhf.prepare.labels import canonical, is_integer
from dapo_openrlhf.prepare.rows import Message, Problem, Readable, Source
from dapo_openrlhf.rewards.gold import gold_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of one format. A key is a column, or a dotted path into nested ones."""

    input_key: str
    label_key: str
    mark: str | None = None
    """The label is the text after this mark in its column, without the thousands separators of a number."""

    def fit(self, row: Mapping[str, object]) -> bool:
        """Whether a row looks like this format."""
        label = column(row, self.label_key)
        return column(row, self.input_key) is not None and label is not None and (self.mark or "") in str(label)


GENERIC = Columns(input_key="input", label_key="label")
CHAT = Columns(input_key="prompt", label_key="reward_model.ground_truth")

FORMATS: Mapping[str, tuple[Columns, ...]] = {
    "dapo-math": (CHAT,),
    "gsm8k": (Columns(input_key="question", label_key="answer", mark="####"),),
    "aime": (
        Columns(input_key="problem", label_key="answer"),
        Columns(input_key="Problem", label_key="Answer"),
        Columns(input_key="question", label_key="answer"),
        CHAT,
    ),
    "generic": (GENERIC,),
}
"""The column layouts in which the data set of each name exists."""


def read_problems(
    source: Source, *, data_format: str, input_key: str | None, label_key: str | None, answers: bool = True
) -> Iterator[Readable]:
    """Yield every row as a problem, or as the error about it.

    ``data_format`` is a key of :data:`FORMATS`, or ``auto``, which decides by the first row that can be read; keys
    given explicitly take precedence. Without ``answers`` a label is any text, for a user's own reward. Raises
    ``ConfigError`` if no format fits.
    """
    columns: Columns | None = None
    for where, row in source.rows():
        if isinstance(row, ConfigError):
            yield row
        elif not isinstance(row, dict):
            yield ConfigError(f"{where}: holds {type(row).__name__}, not a mapping of columns to values")
        else:
            columns = columns or _columns(row, where, data_format, input_key, label_key)
            try:
                yield _problem(row, where, columns, answers)
            except ConfigError as error:
                yield error


def _columns(
    row: Mapping[str, object], where: str, data_format: str, input_key: str | None, label_key: str | None
) -> Columns:
    shapes = list(chain(*FORMATS.values())) if data_format == "auto" else list(FORMATS[data_format])
    if input_key or label_key:
        base = next((shape for shape in shapes if shape.fit(row)), GENERIC if data_format == "auto" else shapes[0])
        return replace(base, input_key=input_key or base.input_key, label_key=label_key or base.label_key)
    for shape in shapes:
        if shape.fit(row):
            return shape
    known = ", ".join(sorted({f"{shape.input_key} + {shape.label_key}" for shape in shapes}))
    raise ConfigError(
        f"{where}: no known pair of columns ({known}) in {column_names(row)}; name them with --input-key and --label-key"
    )


def _problem(row: Mapping[str, object], where: str, columns: Columns, answers: bool) -> Problem:
    given, label = column(row, columns.input_key), column(row, columns.label_key)
    for key, option, value in ((columns.input_key, "--input-key", given), (columns.label_key, "--label-key", label)):
        if value in (None, []) or (isinstance(value, str) and not value.strip()):
            raise ConfigError(f"{where}: column {key!r} ({option}) is missing or empty; it has {column_names(row)}")
    messages, cut = _messages(given, where)
    text = _label(label, where, columns.mark) if answers else _any_text(label)
    problem = Problem(where=where, messages=messages, label=text, cut=cut)
    try:
        "".join((problem.label, *(message.content for message in problem.messages))).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: holds {error.object[error.start]!r}, half of a character") from error
    return problem


def _messages(given: object, where: str) -> tuple[tuple[Message, ...], bool]:
    """The turns to be answered, and whether an answer by the assistant was cut off."""
    try:
        turns, cut = to_be_answered(chat_list(given) or [{"role": "user", "content": given}])
    except BadRow as bad:
        raise ConfigError(f"{where}: {bad}") from bad
    if any(turn.keys() - {"role", "content"} for turn in turns):
        raise ConfigError(f"{where}: a turn has more than 'role' and 'content', which a prompt file would lose")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns), cut


def _any_text(label: object) -> str:
    return label if isinstance(label, str) else json.dumps(label, ensure_ascii=False, default=str)


def _label(given: object, where: str, mark: str | None) -> str:
    try:
        answer = gold_answer(given)  # in a text with a mark, what follows it
    except ValueError as error:
        raise ConfigError(f"{where}: the answer: {error}") from error
    if mark is None:
        return answer
    if mark not in str(given):
        raise ConfigError(f"{where}: the answer {str(given)[-40:]!r} does not end in {mark!r} and a value")
    return canonical(answer) if is_integer(answer) else answer
