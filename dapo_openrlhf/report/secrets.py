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


def without_secrets(value: object, *, free: bool = False) -> object:
    """A value of the settings, nested ones included, without what may be a secret.

    Hidden are users, passwords and queries in addresses, and among names of the user's own (``free``) the values of those
    that end in key, token, secret or password.
    """
    match value:
        case Mapping():
            return {
                str(name): HIDDEN
                if free and _NAMED.search(str(name))
                else without_secrets(inner, free=free or name == FREE)
                for name, inner in value.items()
            }
        case list() | tuple():
            return [without_secrets(inner, free=free) for inner in value]
        case str():
            return _QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(f"{HIDDEN}@", value))
        case _:
            return value
