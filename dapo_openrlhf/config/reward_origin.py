"""What ``reward.remote_url`` names, read in one place: the rule, a Python file, or a server (standard library).

Another kind is a class here and a case in ``rewards/sources.py``. What the rest of a run must know of it, it says itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

_RULE = "rule"


@dataclass(frozen=True, slots=True)
class Rule:
    """The verifier that compares an answer with the row's, DAPO eq. 7."""

    needs_answer: ClassVar = True
    """Rows must have an answer that can be compared with."""
    reads_queries: ClassVar = False
    """Prompt and response are read as the model saw and wrote them, beyond the response's end."""
    loads_code: ClassVar = False
    """A user's code is loaded, which may fail before there is anything to judge."""
    may_be_away: ClassVar = False
    """It may not answer for a while, through no fault of a response."""

    @property
    def name(self) -> str:
        """As settings have it."""
        return _RULE

    @property
    def short_name(self) -> str:
        """As messages have it."""
        return self.name


@dataclass(frozen=True, slots=True)
class PythonFile:
    """A file with ``reward_func(queries, prompts, labels)``."""

    path: str

    needs_answer: ClassVar = False
    reads_queries: ClassVar = True
    loads_code: ClassVar = True
    may_be_away: ClassVar = False

    @property
    def name(self) -> str:
        """As settings have it."""
        return self.path

    @property
    def short_name(self) -> str:
        """Without its folders."""
        return os.path.basename(self.path)


@dataclass(frozen=True, slots=True)
class Server:
    """An http(s) address that speaks OpenRLHF's remote reward protocol."""

    address: str

    needs_answer: ClassVar = False
    reads_queries: ClassVar = True
    loads_code: ClassVar = False
    may_be_away: ClassVar = True

    @property
    def name(self) -> str:
        """As settings have it."""
        return self.address

    @property
    def short_name(self) -> str:
        """As messages have it."""
        return self.address


RewardOrigin: TypeAlias = Rule | PythonFile | Server


def origin_of(name: str) -> RewardOrigin:
    """What a name stands for. Raises ``ValueError`` for one that is no reward."""
    if name == _RULE:
        return Rule()
    if name.endswith(".py"):
        return PythonFile(name)
    if re.match(r"https?://[^/]", name):
        return Server(name)
    raise ValueError(f"{name} is no reward; give rule, a Python file that ends in .py, or an http(s) address")


def refusals(name: str) -> Iterator[str]:
    """A sentence for each thing that is wrong with a name."""
    try:
        origin_of(name)
    except ValueError as error:
        yield str(error)
    if re.search(r",https?://|\.py,", name):
        yield (
            f"{name}: OpenRLHF asks addresses with a comma between them in turn; here several are rewards of which the "
            "weighted sum is trained, given as a list; give one address, with a balancer behind it if need be"
        )
