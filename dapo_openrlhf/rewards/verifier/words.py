"""Tells words from products of letters."""

from __future__ import annotations

import re

_WORD = re.compile(r"(?<![\\A-Za-z])(?![A-Z]{3,6}(?![A-Za-z]))[A-Za-z]{3,}|(?<![\\A-Za-z])(?:no|No|NO)(?![A-Za-z])")
"""A word; ``ABC`` and ``ABCD`` are points, as in the angle ABC."""
_FUNCTIONS = re.compile(
    r"(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|cis|sqrt|gcd|lcm|max|min|mod|lim|det|deg|floor|ceil|abs"
)
_APPLIED = re.compile(rf"(?:(?:{_FUNCTIONS.pattern})[xyzAB])+")
_SKIPPED = re.compile(r"\\(?:begin|end) ?\{[a-z]+\*?\}|_\{[^{}]*\}|\\[a-zA-Z]+")
_SENTENCE = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_VOWEL = re.compile("[aeiouy]")
_DOUBT = re.compile(
    r"\b(?:not|no|neither|nor|never|if|unless|cannot|wrong|false|whether|nothing|none|because|since|but)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?:the|an|a) (?=[a-z])")


def is_prose(text: str) -> bool:
    """Whether a text contains words, which algebra would take for products of letters."""
    return any(not _is_product(word[0]) for word in _WORD.finditer(_SKIPPED.sub(" ", text)))


def _is_product(word: str) -> bool:
    """Whether a word is a function's name or a product of letters: ``sin``, ``abc``, ``xyz``, ``mnp``."""
    if _FUNCTIONS.fullmatch(word) or _APPLIED.fullmatch(word):
        return True
    letters = sorted(set(word))
    neighbours = len(letters) == len(word) and ord(letters[-1]) - ord(letters[0]) == len(word) - 1
    return len(word) <= 5 and (neighbours or not _VOWEL.search(word.lower()))


def same_words(one: str, other: str) -> bool:
    """Whether two texts are the same words; capitals, articles and full stops do not count."""
    return _plain(one) == _plain(other)


def says_same(one: str, other: str) -> bool:
    """Whether one is a short sentence that states the other of something: ``The function is even.``"""
    for sentence, word in ((one, other), (other, one)):
        subject, said, rest = sentence.rpartition(" is ")
        if said and is_sentence(subject) and not _DOUBT.search(subject) and same_words(rest, word):
            return True
    return False


def same_times(one: str, other: str) -> bool:
    """Whether two texts are the same words, or times of which only one says which half of the day it is in."""
    halves = [text[-3:] if text.endswith((" am", " pm")) else "" for text in (one, other)]
    if all(halves):
        return same_words(one, other)
    return same_words(one.removesuffix(halves[0]), other.removesuffix(halves[1]))


def is_verdict(text: str) -> bool:
    """Whether a text is ``yes``, ``no``, ``true`` or ``false``; the order of several of them matters."""
    return text.casefold() in ("yes", "no", "true", "false")


def _plain(text: str) -> str:
    return _ARTICLE.sub(
        "", " ".join(text.casefold().replace(".", "").replace("-", " ").replace("{", "").replace("}", "").split())
    )


def is_sentence(text: str) -> bool:
    """Whether a text is nothing but words."""
    return _SENTENCE.fullmatch(text) is not None


_NEIGHBOURS = re.compile(r"(?<![_^0-9])[0-9]+ [0-9]+(?!/?[0-9])")
"""Two numbers side by side, the second of which is not a fraction."""


def is_mathematics(text: str) -> bool:
    """Whether algebra can read a text: it is not empty, and has no words and only paired braces."""
    if is_prose(text) or _NEIGHBOURS.search(text) or not any(sign.isalnum() for sign in text) or "\\ldots" in text:
        return False
    depth = 0
    for position, sign in enumerate(text):
        if sign in "{}" and (position == 0 or text[position - 1] != "\\"):
            depth += 1 if sign == "{" else -1
            if depth < 0:
                return False
    return depth == 0
