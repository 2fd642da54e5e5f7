"""Settings of verl that are being translated (standard library)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dapo_openrlhf.convert.conversion import number


class Taken:
    """Settings of verl, of which it is known which have been looked at."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._taken: set[str] = set()

    def get(self, *names: str) -> Any:
        """The first of these that is set and not null; all of them count as looked at."""
        self._taken.update(names)
        return next((self._given[name] for name in names if self._given.get(name) is not None), None)

    def number(self, *names: str, default: float) -> float:
        """The same as a number."""
        value = self.get(*names)
        return default if value is None else number(value, name=names[0])

    def below(self, prefix: str) -> dict[str, Any]:
        """Everything below a dotted name, by what follows it; all of it counts as looked at."""
        found = {name: value for name, value in self._given.items() if name.startswith(f"{prefix}.")}
        self._taken.update(found)
        return {name.removeprefix(f"{prefix}."): value for name, value in found.items()}

    def left(self) -> list[str]:
        """The names that nobody has looked at."""
        return [name for name in self._given if name not in self._taken]
