"""Reads a file as a set of prompts, from the cache or by rendering its rows; refuses or leaves out bad rows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from dapo_openrlhf.config.choices import OnBadRow
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.bad_rows import BadRows
from dapo_openrlhf.dataset.cache import Digest, digest_of, key_of, new_file, open_kept
from dapo_openrlhf.dataset.messages import Bad, Good
from dapo_openrlhf.dataset.readers import Readers
from dapo_openrlhf.dataset.rows import blocks, unit
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.dataset.store import NotAStore, PromptSet, StoreWriter
from dapo_openrlhf.types import Prompt
from dapo_openrlhf.whole_file import Unwritable

HEARTBEAT_SECONDS = 5.0
"""Seconds between two messages about the progress of the reading."""

SHOWN = 600
"""Most characters of a prompt that are shown; of a longer one the beginning and the end are."""


@dataclass(slots=True)
class _Tally:
    """What was found in a file besides the prompts."""

    rows: int = 0
    bad: BadRows = field(default_factory=BadRows)
    remarks: dict[str, list[int]] = field(default_factory=dict)
    """For each remark the count of its rows, and the number of the first one."""

    def add(self, row: Good | Bad) -> None:
        self.rows += 1
        if isinstance(row, Bad):
            self.bad.add(row.number, row.kind, row.words)
        else:
            for remark in row.remarks:
                self.remarks.setdefault(remark, [0, row.number])[0] += 1


def read_prompt_set(
    path: Path, rules: RowRules, *, setting: str, on_bad_row: OnBadRow, say: Callable[[str], None]
) -> PromptSet:
    """The prompts of a file. ``setting`` is the setting that names the file; ``say`` gets messages about it.

    Raises ``ConfigError`` for a file or a tokenizer that cannot be used, for bad rows that are not to be skipped, and if
    no prompt is left.
    """
    blocks(path)  # refuses a file of another kind before its bytes are read
    digest = digest_of(path)
    key = key_of(digest, rules)
    prompts = _kept(path, key, say)
    if prompts is None:
        try:
            prompts = _made(path, key, digest, rules, setting, say)
        except Unwritable as error:  # of the cache, which is a convenience
            say(f"{path} ({setting}): its prompts are not kept for the next run: {error}")
            prompts = _made(path, None, digest, rules, setting, say)
    _judge(path, prompts, setting, on_bad_row, say)
    return prompts


def show(prompt: Prompt) -> str:
    """A prompt as the model sees it, in a form for people to read."""
    text = repr(prompt.text)
    if len(text) > SHOWN:
        half = SHOWN // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    return f"{len(prompt.token_ids):,} tokens, {prompt.source}: {text}"


def _source(path: Path) -> str:
    return f"{path}, {unit(path)} "


def _kept(path: Path, key: str | None, say: Callable[[str], None]) -> PromptSet | None:
    file = open_kept(key) if key else None
    if file is None:
        return None
    with file:
        try:
            return PromptSet(file, source=_source(path))
        except NotAStore as error:
            say(f"{path}: its prompts in the cache are damaged ({error}) and are made anew")
            return None


def _made(
    path: Path, key: str | None, digest: Digest, rules: RowRules, setting: str, say: Callable[[str], None]
) -> PromptSet:
    tally, numbers = _Tally(), hashlib.sha256()
    started = said = time.monotonic()
    with new_file(key) as file:
        writer = StoreWriter(file)
        with Readers(path, rules) as readers:
            for block in readers.blocks():
                for row in block:
                    tally.add(row)
                    if isinstance(row, Good):
                        writer.add(row)
                        numbers.update(f"{row.number} ".encode())
                if time.monotonic() - said > HEARTBEAT_SECONDS:
                    said = time.monotonic()
                    say(f"{path} ({setting}): {tally.rows:,} rows rendered and tokenized after {said - started:.0f} s")
        if digest_of(path) != digest:
            raise ConfigError(f"{path} ({setting}): was written to while it was read; start again")
        numbers.update(f"{digest.hex()} {rules.input_key} {rules.label_key}".encode())
        writer.finish(
            {
                "rows": tally.rows,
                "bad": tally.bad.as_dict(),
                "remarks": tally.remarks,
                "identity": numbers.hexdigest()[:32],
            }
        )
        prompts = PromptSet(file, source=_source(path))
    if said > started:
        kept = "; kept for the next run" if key else ""
        say(f"{path} ({setting}): {tally.rows:,} rows after {time.monotonic() - started:.0f} s{kept}")
    return prompts


def _judge(path: Path, prompts: PromptSet, setting: str, on_bad_row: OnBadRow, say: Callable[[str], None]) -> None:
    found: dict[str, Any] = prompts.description
    bad, rows = BadRows.of(found["bad"]), found["rows"]
    if not rows:
        raise ConfigError(f"{path} ({setting}): holds no prompts")
    report = "\n".join([f"{path} ({setting}): {bad.total:,} of {rows:,} rows are no prompts", *bad.report(unit(path))])
    match on_bad_row:
        case "refuse":
            if bad.total:
                raise ConfigError(f"{report}\nmend or remove them, or leave them out with data.on_bad_row skip")
        case "skip":
            pass
        case _:
            assert_never(on_bad_row)
    if not prompts:
        raise ConfigError(f"{report}\nnone is left")
    if bad.total:
        say(f"{report}\nthey are left out (data.on_bad_row)")
