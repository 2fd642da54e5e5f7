"""The data types of the preparation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dapo_openrlhf.config.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem with its gold answer."""

    where: str
    """File and line, or set and row, as messages name them."""
    messages: tuple[Message, ...]
    """The turns, at least one; plain text is a single turn of the user."""
    label: str
    cut: bool = False
    """Whether the row's chat ended in the assistant's answer, which was cut off."""

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """The prompt as a prompt file holds it: text, or a chat list where there is more than a single user turn."""
        if len(self.messages) == 1 and self.messages[0].role == "user":
            return self.messages[0].content
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def with_text(self, change: Callable[[str], str]) -> Problem:
        """The same problem with the user's last turn changed."""
        last = max(index for index, message in enumerate(self.messages) if message.role == "user")
        messages = list(self.messages)
        messages[last] = replace(messages[last], content=change(messages[last].content))
        return replace(self, messages=tuple(messages))

    def with_turns_before(self, turns: Sequence[Message]) -> Problem:
        """The same problem with earlier turns of a chat, inserted after the system's turn."""
        first = next(index for index, message in enumerate(self.messages) if message.role != "system")
        return replace(self, messages=(*self.messages[:first], *turns, *self.messages[first:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of rows."""

    name: str
    """Name of the source without folders, so that a manifest does not depend on the machine."""
    rows: Callable[[], Iterator[tuple[str, object]]]
    """Returns the place of each row and the row; a row that cannot be read is given as the ``ConfigError`` about it."""
    sha256: Callable[[], str]
    """Returns the SHA-256 of the file's bytes, or of all rows as JSON where there is no file."""


Readable = Problem | ConfigError
"""A problem, or why a row is not one."""
