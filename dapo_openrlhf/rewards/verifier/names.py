"""Recognises what may precede an equals sign without being part of the answer: a name, ``f(x)``, what was asked for."""

from __future__ import annotations

import re

from dapo_openrlhf.rewards.verifier.words import is_prose

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar"
)
_LETTER = rf"(?:[A-Za-z]|\\(?:{'|'.join(_GREEK.split())})(?![a-zA-Z]))"
_SUBSCRIPT = r"(?:_(?:\{[^{}]{1,20}\}|[A-Za-z0-9]|\\[a-z]+))"
_ONE = rf"(?:\\(?:vec|hat|tilde|overline|mathbb|mathcal|widehat)? ?\{{? ?)?{_LETTER}(?: ?\}})? ?{_SUBSCRIPT}?'{{0,3}}(?:\^\*)?"
_APPLIED = rf"{_ONE} ?(?:\^\{{?\(?-?\d\)?\}}?)? ?[(\[][^()\[\]<>]{{1,20}}[)\]]"
_FIGURE = (
    r"(?:\\(?:angle|triangle|overline|vec|measuredangle|odot) ?\{? ?|m ?\\angle ?|\||\[)?[A-Z]{1,6}'?(?: ?\})?[|\]]?"
)
_MEASURED = r"(?:\\(?:deg|det|gcd|lcm|min|max|operatorname|arg|Re|Im)|P|E|Var) ?[({\[][^<>()]{1,20}[)}\]]"
_DERIVATIVE = r"\\frac ?\{d\^?\{?\d?\}?[a-z]?\} ?\{d[a-z]\^?\{?\d?\}?\}"
_NAME = re.compile(rf"(?:{_ONE}|{_APPLIED}|{_FIGURE}|{_MEASURED}|{_DERIVATIVE})")
_SUM = re.compile(rf"{_LETTER}{_SUBSCRIPT}?(?: ?\+ ?{_LETTER}{_SUBSCRIPT}?){{1,5}}")
_TUPLE = re.compile(rf"[(\[]?{_ONE}(?:, ?{_ONE}){{1,5}}[)\]]?")
_WORDS = re.compile(
    r"(?!.*\b(?:not|because|if|then|so|since|where|when|thus|hence|but|neither|nor|never|no|nobody|none|nothing|no one|few|fewer|unless|cannot|wrong|false)\b)[A-Za-z]{2,}(?:[ -][A-Za-z]+){0,5}",
    re.IGNORECASE,
)
LONGEST = 60
"""Most characters of a name."""


def is_name(text: str) -> bool:
    """Whether a text is just a name, without any calculation: ``x``, ``f(x)``, ``AB``, ``(x,y)``, ``Area``; not ``4x``,
    ``-x``, ``x^2``, ``xy``."""
    if not text or len(text) > LONGEST or text in (r"\pi", "e", "i"):
        return False
    if any(form.fullmatch(text) for form in (_NAME, _TUPLE)):
        return True
    return text.lower() in ("he", "it", "we") or (_WORDS.fullmatch(text) is not None and is_prose(text))


def is_asked_for(text: str) -> bool:
    """Whether a text may be what a question asks for: a name, or a sum of names such as ``m+n``."""
    return is_name(text) or (len(text) <= LONGEST and _SUM.fullmatch(text) is not None)


def same_name(one: str, other: str) -> bool:
    """Whether two names may mean the same: they are equal, or one is ``f(x)`` and the other a letter for it."""
    if one == other or not one or not other:
        return True
    first, second = "(" in one, "(" in other
    return first != second and {one[0], other[0]} <= set("yfghpPQ")
