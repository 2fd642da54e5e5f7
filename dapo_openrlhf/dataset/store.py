"""A set of prompts in one file, which is read in place, so that a million prompts take no memory of the process.

The file consists of a line that names the format, the prompts' bytes one after the other (token ids, text, label and
columns as JSON), a table of where each begins, and a description as JSON with the position of the table and a checksum
over everything before.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, overload

from dapo_openrlhf.dataset.messages import TOKEN_ID, Good
from dapo_openrlhf.types import Prompt

MAGIC = f"dapo_openrlhf prompts 1 {sys.byteorder}\n".encode()
_TAIL = struct.Struct("<QI")
"""Length of the description, and the checksum of everything before this."""


class NotAStore(ValueError):
    """The file is not a complete set of prompts."""


class StoreWriter:
    """Writes a set, prompt by prompt."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._checksum = 0
        self._position = 0
        self._table = array("q")
        self._write(MAGIC)

    def add(self, row: Good) -> None:
        """Add a prompt."""
        self._table.extend((self._position, len(row.token_ids), len(row.text), len(row.rest), row.number))
        self._write(row.token_ids)
        self._write(row.text)
        self._write(row.rest)

    def finish(self, description: Mapping[str, Any]) -> None:
        """Complete the file, once all prompts have been added."""
        where = {"table": self._position, "prompts": len(self._table) // 5}
        self._write(self._table.tobytes())
        words = json.dumps({**description, **where}).encode()
        self._write(words)
        self._file.write(_TAIL.pack(len(words), self._checksum))
        self._file.flush()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self._position += len(data)


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    ids: int
    text: int
    rest: int
    number: int


class Prompts(Sequence[Prompt]):
    """Prompts that are made when they are asked for."""

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.prompt(index % len(self))

    def prompt(self, index: int) -> Prompt:
        """The prompt at a place from 0."""
        raise NotImplementedError


class PromptSet(Prompts):
    """The prompts of a file that :class:`StoreWriter` wrote."""

    def __init__(self, file: IO[bytes], *, source: str = "") -> None:
        """``source``: the text before a row's number in ``Prompt.source``. Raises :class:`NotAStore`."""
        try:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            length, checksum = _TAIL.unpack(self._bytes[-_TAIL.size :])
            end = len(self._bytes) - _TAIL.size
            with memoryview(self._bytes) as view:
                if not self._bytes[: len(MAGIC)] == MAGIC or zlib.crc32(view[:end]) != checksum:
                    raise NotAStore("its bytes are not those that were written")
            self.description: dict[str, Any] = json.loads(self._bytes[end - length : end])
            self._table = array("q", self._bytes[self.description["table"] : end - length])
        except (ValueError, KeyError, struct.error) as error:
            raise NotAStore(str(error)) from error
        self._source = source

    def __len__(self) -> int:
        return len(self._table) // 5

    def __iter__(self) -> Iterator[Prompt]:
        return map(self.prompt, range(len(self)))

    def lengths(self) -> list[int]:
        """The number of tokens of each prompt."""
        size = array(TOKEN_ID).itemsize
        return [length // size for length in self._table[1::5]]

    @property
    def identity(self) -> str:
        """The text by which the set is recognised."""
        words: str = self.description["identity"]
        return words

    def source_of(self, number: int) -> str:
        """Where a line or row of the file stands, in words."""
        return f"{self._source}{number}"

    def numbers(self) -> list[int]:
        """The line or row of each prompt in its file."""
        return list(self._table[4::5])

    def prompt(self, index: int) -> Prompt:
        """The prompt at a place from 0, read from the file."""
        place = _Place(*self._table[5 * index : 5 * index + 5])
        text = place.start + place.ids
        rest = json.loads(self._bytes[text + place.text : text + place.text + place.rest])
        return Prompt(
            id=index,
            text=self._bytes[text : text + place.text].decode(),
            token_ids=tuple(array(TOKEN_ID, self._bytes[place.start : text])),
            label=rest["label"],
            columns=rest["columns"],
            source=self.source_of(place.number),
        )
