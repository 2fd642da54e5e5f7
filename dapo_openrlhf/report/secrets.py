"""Settings as others may see them (standard library only)."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "..."

_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(://[^?#\s]*)[?#]\S*")
_NAMED = re.compile(r"(?:^|[._-])(?:key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE)

FREE = "chat_template_kwargs"
"""The setting whose names are the user's own; every other is known, and none is a secret."""


def without_secrets(value: object, *, name: str = "") -> object:
    """A value of the settings, nested ones included, without what may be a secret; ``name`` is its dotted name.

    Hidden are users, passwords and queries in addresses, and below :data:`FREE` the values whose names end in key, token,
    secret or password.
    """
    if FREE in name and _NAMED.search(name):
        return HIDDEN
    match value:
        case Mapping():
            return {str(key): without_secrets(inner, name=f"{name}.{key}") for key, inner in value.items()}
        case list() | tuple():
            return [without_secrets(inner, name=name) for inner in value]
        case str():
            return _QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(f"{HIDDEN}@", value))
        case _:
            return value
