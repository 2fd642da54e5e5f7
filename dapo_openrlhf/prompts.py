"""The prompt set and its order (layer 2: standard library; parquet through pyarrow)."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config import ConfigError
from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptState:
    """How far a run has come with its prompts."""

    drawn: int
    """Prompts taken from the endless order."""
    returned: tuple[int, ...]
    """Ids of prompts to be given out again first."""
    prompt_count: int
    """Size of the prompt set."""
    fingerprint: str = ""
    """Of the prompts' texts, by which other ones are recognised; empty: not known."""


class PromptStream:
    """Endless prompts: each episode goes through the whole set once, in an order given by seed and episode."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, state: PromptState | None = None) -> None:
        """``state``: where to go on. Raises :class:`ConfigError` when it belongs to another prompt set."""
        if not prompts:
            raise ValueError("the prompt set is empty")
        self._prompts = prompts
        self._seed = seed
        self._returned: deque[Prompt] = deque()
        self._order = self._episodes()
        self._drawn = 0
        if state is not None:
            check_same_prompts(prompts, state)
            self._returned.extend(prompts[index] for index in state.returned)
            self._drawn = state.drawn
            deque(itertools.islice(self._order, state.drawn), maxlen=0)

    def _episodes(self) -> Iterator[Prompt]:
        episode = 0
        while True:
            order = list(range(len(self._prompts)))
            random.Random(f"{self._seed}/{episode}").shuffle(order)
            yield from (self._prompts[index] for index in order)
            episode += 1

    def next(self) -> Prompt:
        """The next prompt; one that was put back comes first."""
        if self._returned:
            return self._returned.popleft()
        self._drawn += 1
        return next(self._order)

    def put_back(self, prompt: Prompt) -> None:
        """Return a prompt whose group failed, so that it is not lost."""
        self._returned.append(prompt)

    def state(self, unfinished: Iterable[Prompt]) -> PromptState:
        """Where to go on later. ``unfinished``: prompts given out that have not been trained or dropped yet."""
        returned = tuple(prompt.id for prompt in (*unfinished, *self._returned))
        return PromptState(
            drawn=self._drawn,
            returned=returned,
            prompt_count=len(self._prompts),
            fingerprint=fingerprint(self._prompts),
        )


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Of the texts in their order. Labels are not part of it: a wrong answer may be corrected within a run."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        text = prompt.text.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8))
        digest.update(text)
    return digest.hexdigest()


def check_same_prompts(prompts: Sequence[Prompt], state: PromptState) -> None:
    """Raises :class:`ConfigError` when a run's place in its prompts is not one in these."""
    if state.prompt_count != len(prompts):
        found = f"holds {len(prompts)} prompts, the run to resume had {state.prompt_count}"
    elif state.fingerprint and state.fingerprint != fingerprint(prompts):
        found = f"holds {len(prompts)} prompts, but not those of the run to resume, or not in their order"
    else:
        return
    raise ConfigError(
        f"data.prompt_dataset: {found}; resume with the same prompts, or start a new run from the checkpoint: "
        "--config RUN/config.yaml --actor.model_name_or_path RUN/checkpoints/step-N"
    )


def load_prompts(path: Path, *, input_key: str, label_key: str, input_template: str | None = None) -> list[Prompt]:
    """Read prompts from .jsonl, .json or .parquet. A broken row is named by file and line.

    The prompt column holds text, or a chat list, which is kept as its JSON text for the tokenizer's chat template.
    """
    prompts: list[Prompt] = []
    for line, row in read_rows(path):
        where = f"{path}, row {line}"
        if isinstance(row, ConfigError):
            raise row
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: holds {type(row).__name__}, not a mapping of columns to values")
        for key, setting in ((input_key, "data.input_key"), (label_key, "data.label_key")):
            if row.get(key) in (None, ""):
                raise ConfigError(f"{where}: column {key!r} ({setting}) is missing or empty; it has {sorted(row)}")
        text = row[input_key] if isinstance(row[input_key], str) else json.dumps(row[input_key], ensure_ascii=False)
        text = input_template.replace("{}", text) if input_template else text
        prompts.append(Prompt(id=len(prompts), text=text, label=str(row[label_key])))
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    return prompts


def chat_turns(text: str) -> list[dict[str, str]]:
    """A prompt's text as the turns of a chat: those of the chat list that it is the JSON of, or one turn of the user."""
    if text.startswith("[{"):  # a problem may well begin with an interval, a list or [asy]
        turns: list[dict[str, str]] = json.loads(text)
        return turns
    return [{"role": "user", "content": text}]


def read_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Rows with their line or row number, from 1; a line that is not JSON comes as the ``ConfigError`` about it.

    Raises ``ConfigError`` for a file that cannot be read at all.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path} (data.prompt_dataset or eval.dataset)")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".json":
        try:
            rows = json.loads(path.read_bytes())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, a number too long, nested too deeply
            raise ConfigError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(rows, list):
            raise ConfigError(f"{path}: holds one {type(rows).__name__}, not a list of rows")
        yield from enumerate(rows, start=1)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, ConfigError(f"{path}, line {number}: not valid JSON: {error}")
    else:
        raise ConfigError(f"{path}: prompts are read from .jsonl, .json or .parquet, not {path.suffix or 'this'}")


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    import pyarrow.parquet  # takes 0.3 s and most runs do without

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{path}: not valid Parquet: {error}") from error
    with file:
        rows = (row for batch in file.iter_batches(batch_size=4096) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
