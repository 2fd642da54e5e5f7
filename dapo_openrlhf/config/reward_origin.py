"""The kinds of reward that ``reward.remote_url`` can name: the rule, a Python file, a server (standard library).

Another kind takes a class here and a case in ``rewards/sources.py``. Each class says what the rest of a run must know
about its kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias
from urllib.parse import urlsplit

from dapo_openrlhf.config.addresses import without_user

_RULE = "rule"


@dataclass(frozen=True, slots=True)
class Rule:
    """The verifier that compares an answer with the row's, DAPO eq. 7."""

    needs_answer: ClassVar = True
    """Whether rows must have an answer that can be compared with."""
    reads_queries: ClassVar = False
    """Whether the reward reads prompt and response in full, as the model saw and wrote them, and not only the end of
    the response."""
    loads_code: ClassVar = False
    """Whether a user's code is loaded, which may fail before there is anything to score."""
    may_be_away: ClassVar = False
    """Whether the reward may be unavailable for a while, for a reason that has nothing to do with a response."""

    @property
    def name(self) -> str:
        """The name that settings use."""
        return _RULE

    @property
    def short_name(self) -> str:
        """The name that messages use."""
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
        """The name that settings use."""
        return self.path

    @property
    def short_name(self) -> str:
        """The name that messages use: the file's name without its folders."""
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
        """The name that settings use."""
        return self.address

    @property
    def short_name(self) -> str:
        """The name that messages use."""
        return self.address


RewardOrigin: TypeAlias = Rule | PythonFile | Server


def origin_of(name: str) -> RewardOrigin:
    """The reward that a name stands for. Raises ``ValueError`` for a name that is not a reward."""
    if name == _RULE:
        return Rule()
    if name.endswith(".py"):
        return PythonFile(name)
    if re.match(r"https?://[^/]", name):
        return Server(name)
    raise ValueError(
        f"{without_user(name)} is no reward; give rule, a Python file that ends in .py, or an http(s) address"
    )


def _is_address(text: str) -> bool:
    try:
        return urlsplit(text.split(",")[0]).port != 0
    except ValueError:  # the port is no number, or an IPv6 address is cut off
        return False


def refusals(name: str) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with a name. None repeats a password."""
    if re.match(r"https?://[^/?#]*@", name):
        yield (
            f"{without_user(name)}: an address with a user or password would be in logs and saved settings; leave them out, "
            "and write `machine HOST login USER password PASSWORD` in ~/.netrc, or in a file that NETRC names"
        )
        return
    if re.match(r"https?://", name) and not _is_address(name):
        yield f"{without_user(name)}: not the form of an address, http://host:port/path"
        return
    try:
        origin_of(name)
    except ValueError as error:
        yield str(error)
    if re.search(r",https?://|\.py,", name):
        yield (
            f"{name}: OpenRLHF asks addresses with a comma between them in turn; here several are rewards of which the "
            "weighted sum is trained, given as a list; give one address, with a balancer behind it if need be"
        )
