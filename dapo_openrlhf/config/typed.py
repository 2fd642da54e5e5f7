"""Values of settings as text (standard library only)."""

from __future__ import annotations

import json
from collections.abc import Mapping


def typed(value: object) -> str:
    """A value as one would type it after ``--section.key``: a list as its values with spaces between, a mapping as
    JSON.

    A number has as many digits as it takes to read it back unchanged.
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            short = f"{value:g}"
            return short if float(short) == value else repr(value)
        case list() | tuple():
            return " ".join(map(typed, value))
        case Mapping():
            return json.dumps(value)
        case _:
            return str(value)
