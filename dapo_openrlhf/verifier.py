"""The rule reward: is the answer right? (layer 0: standard library only)

DAPO eq. 7: +1 if the final answer is equivalent to the gold one, -1 if not. Extraction is strict, so that a response
that merely contains the right number somewhere is wrong and the format is learnt: the last line of the form
``Answer: ...``, or the last ``\\boxed{...}``, whichever comes later, near the end of the response.
"""

from __future__ import annotations

import re
import unicodedata

TAIL = 2000
"""Characters at the end of a response in which the answer must stand."""
LONGEST_ANSWER = 200
"""Characters of an answer; a longer one is no final answer."""

RIGHT = 1.0
WRONG = -1.0

_ANSWER_LINE = re.compile(r"answer\s*[:\uff1a]\s*([^\n]*)", re.IGNORECASE)
_DECORATION = re.compile(r"\*\*|\\left|\\right|\\[,;!: ]|\$|\\text\{[^{}]*\}|\\(?:mathrm|mathbf)\{[^{}]*\}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INTEGER = re.compile(r"[-+]?\d+")


def extract_answer(response: str) -> str | None:
    """The final answer a response gives, or None."""
    tail = response[-TAIL:]
    candidates: list[tuple[int, str]] = []
    lines = list(_ANSWER_LINE.finditer(tail))
    if lines:
        candidates.append((lines[-1].start(), lines[-1][1]))
    start = tail.rfind("\\boxed{")
    if start >= 0 and (inner := _braced(tail, start + len("\\boxed{"))) is not None:
        candidates.append((start, inner))
    if not candidates:
        return None
    answer = max(candidates)[1].strip()
    if "\\boxed{" in answer:
        answer = _braced(answer, answer.rfind("\\boxed{") + len("\\boxed{")) or ""
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def normalise(answer: str) -> str:
    """An answer's canonical text: no decoration, spaces, thousands separators or trailing full stop."""
    text = unicodedata.normalize("NFKC", answer).replace("\u2212", "-")
    text = _DECORATION.sub("", text).strip().rstrip(".").strip()
    text = _THOUSANDS.sub("", text).replace(" ", "")
    if _INTEGER.fullmatch(text) and len(text) < 1000:
        sign = "-" if text.startswith("-") else ""
        digits = text.lstrip("+-").lstrip("0") or "0"
        return digits if digits == "0" else sign + digits
    return text


def same_text(answer: str, label: str) -> bool:
    """Whether two answers are equal once normalised."""
    return normalise(answer) == normalise(label)


def is_plain_number(text: str) -> bool:
    """Whether a normalised text is an integer, which nothing else than the same integer equals."""
    return _INTEGER.fullmatch(text) is not None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace opened before ``start`` and the one that closes it."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None
