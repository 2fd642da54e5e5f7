"""Multiple choice: an answer that repeats what its letter stands for."""

from __future__ import annotations

import re

_LETTER = re.compile(r"[A-J]")
_LETTERS = re.compile(r"[A-J](?:, ?[A-J])+")
_NAMED = re.compile(r"(?:[Oo]ption|[Cc]hoice) ?\(?([A-J])\)?")
_WITH_TEXT = re.compile(r"(?:[Oo]ption ?|[Cc]hoice ?)?(?:\(([A-J])\)|([A-J])\)) ?(?P<rest>[^,].*)", re.DOTALL)
_ANOTHER = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J]\)|^[A-J]$")


def by_choice(mine: str, gold: str) -> bool | None:
    """The verdict where the gold answer is a letter, or several, and the answer says more: ``(C) 12``, ``AC`` for
    ``A, C``. None where it is not about letters."""
    if _LETTERS.fullmatch(gold) and mine.isalpha() and mine.isupper():
        return sorted(mine) == sorted(gold.replace(",", "").replace(" ", ""))
    if _LETTER.fullmatch(gold) and (found := _WITH_TEXT.fullmatch(mine)) and not _ANOTHER.search(found["rest"]):
        return gold == (found[1] or found[2])
    if _LETTER.fullmatch(gold) and (found := _NAMED.fullmatch(mine)):
        return gold == found[1]
    return None
