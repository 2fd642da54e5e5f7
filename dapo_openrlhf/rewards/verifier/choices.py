"""Compares multiple-choice answers that repeat what their letter stands for, or that explain a yes or no."""

from __future__ import annotations

import re

from dapo_openrlhf.rewards.verifier.numbers import exact_value

_LETTER = re.compile(r"[A-J]")
_LETTERS = re.compile(r"[A-J](?:, ?[A-J])+")
_NAMED = re.compile(r"(?:[Oo]ption|[Cc]hoice) ?\(?([A-J])\)?")
_WITH_TEXT = re.compile(r"(?:[Oo]ption ?|[Cc]hoice ?)?(?:\(([A-J])\)|([A-J])\)) ?(?P<rest>[^,].*)", re.DOTALL)
_ANOTHER = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J]\)|^[A-J]$")
_VERDICT = re.compile(r"(yes|no|true|false)[,.;:] ?(?P<why>[^=\d]{3,})", re.IGNORECASE)
_VERDICTS = re.compile(r"\b(?:yes|no|true|false|not|maybe)\b", re.IGNORECASE)

_AFFIRMED = re.compile(r"\b(?:yes|true|maybe)\b", re.IGNORECASE)


def by_choice(one: str, other: str) -> bool | None:
    """The verdict where one of the two is a letter, or several, and the other says more: ``(C) 12``, ``AC`` for ``A, C``;
    likewise for yes and no. None for all other texts."""
    for short, long in ((other, one), (one, other)):
        if _LETTERS.fullmatch(short) and long.isalpha() and long.isupper() and long.isascii():
            return short is other and sorted(long) == sorted(short.replace(",", "").replace(" ", ""))
        if (verdict := _of_letter(short, long)) is not None:
            return verdict
        if (said := _VERDICT.fullmatch(long)) and _VERDICTS.fullmatch(short):
            turns = _VERDICTS if said[1].casefold() in ("yes", "true") else _AFFIRMED
            return said[1].casefold() == short.casefold() and not turns.search(said["why"])
    return None


def _of_letter(short: str, long: str) -> bool | None:
    explained = _WITH_TEXT.fullmatch(long)
    if explained and not _ANOTHER.search(explained["rest"]):
        if _LETTER.fullmatch(short):
            return short == (explained[1] or explained[2])
        value, wanted = exact_value(explained["rest"]), exact_value(short)
        return value == wanted if value is not None and wanted is not None else None
    if _LETTER.fullmatch(short) and (named := _NAMED.fullmatch(long)):
        return short == named[1]
    return None
