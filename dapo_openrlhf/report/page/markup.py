"""Text as HTML shows it: nothing of a response or a name is ever markup (standard library only)."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of what follows, unseen."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
"""Control characters, halves of surrogate pairs, which UTF-8 cannot hold, and characters that are none."""
_MARKS_IN_A_ROW = 4


def shown(text: str, *, most: int | None = None) -> str:
    """A text as HTML, at most ``most`` of its characters; what cannot be seen in it is written as its code."""
    rest = 0 if most is None else max(len(text) - most, 0)
    kept = text[: len(text) - rest].replace("\r\n", "\n")
    kept = _DIRECTION.sub(_code, _CONTROL.sub(_code, kept))
    more = f"\n… {rest:,} more characters" if rest else ""
    return html.escape("".join(_few_marks(kept)) + more, quote=True)


def _code(found: re.Match[str]) -> str:
    return f"[U+{ord(found[0]):04X}]"


def _few_marks(text: str) -> Iterable[str]:
    """The text without the marks of a character beyond a few, which would cover the lines around it."""
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= _MARKS_IN_A_ROW:
            yield character


def brief(value: float) -> str:
    """A number with three or four significant digits; a dash for NaN and infinity."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10_000 and size < 1e15:
        for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= limit:
                return f"{value / limit:.3g}{unit}"
    if size >= 1e15 or 0 < size < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share as a percentage; a dash for NaN and infinity."""
    return f"{value:.1%}" if math.isfinite(value) else "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table of cells that are HTML already; columns from ``numbers_from`` on are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="n"' if place >= numbers_from else "" for place, _ in enumerate(cells))
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'
