"""What is worth knowing of prompts that are no fault, each kind said once for all sets (standard library)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dapo_openrlhf.dataset.store import PromptSet
from dapo_openrlhf.dataset.template import WARNINGS

NAMED = 3
"""Most sets that a remark names; more are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSet:
    """A set of prompts as the configuration names it."""

    name: str
    setting: str
    """The setting that names it."""
    prompts: PromptSet


def remarks_on(sets: Iterable[NamedSet]) -> Iterator[str]:
    """Yield a line for each kind of remark: the sets that it is about, how many of their prompts, and the first of these."""
    found: dict[str, list[NamedSet]] = {}
    for one in sets:
        for remark in one.prompts.description["remarks"]:
            found.setdefault(remark, []).append(one)
    for remark, about in found.items():
        names = list(dict.fromkeys(f"{one.name} ({one.setting})" for one in about))
        named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        count = sum(one.prompts.description["remarks"][remark][0] for one in about)
        first = about[0].prompts.source_of(about[0].prompts.description["remarks"][remark][1])
        warning = "warning: " if remark.startswith(WARNINGS) else ""
        of = sum(len(one.prompts) for one in about)
        yield f"{warning}{named}: {count:,} of {of:,} prompts {remark} (the first: {first})"
