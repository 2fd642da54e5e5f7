"""``data.input_template``: text around each prompt (standard library only)."""

from __future__ import annotations

import string
from collections.abc import Callable


def input_template(template: str) -> Callable[[str], str]:
    """What puts a prompt where ``{}`` stands.

    A template that ``str.format`` takes means what it means to OpenRLHF, which formats it: ``{{`` and ``}}`` are braces.
    Other braces than one ``{}``, which make it raise, stand for themselves here. Raises ``ValueError`` for a template
    without a place for the prompt, or with several.
    """
    try:
        fields = [name + (conversion or "") + (form or "") for _, name, form, conversion in _parse(template)]
    except ValueError:
        fields = ["unbalanced"]
    if fields == [""] or (fields and set(fields) == {"0"}):
        return template.format
    places = template.count("{}")
    if places != 1:
        raise ValueError(
            f"{template!r} has {places or 'no'} {{}} where the prompt goes; give one, and write {{{{}}}} for mere braces"
        )
    return lambda text: template.replace("{}", text)


def _parse(template: str) -> list[tuple[str, str, str | None, str | None]]:
    parsed = string.Formatter().parse(template)
    return [(text, name, form, conversion) for text, name, form, conversion in parsed if name is not None]
