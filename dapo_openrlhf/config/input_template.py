"""The setting ``data.input_template``: text around each prompt (standard library only)."""

from __future__ import annotations

import string
from collections.abc import Callable


def input_template(template: str) -> Callable[[str], str]:
    """Return a function that puts a prompt in the place of ``{}``.

    A template that ``str.format`` accepts means the same as in OpenRLHF, which formats it: ``{{`` and ``}}`` are
    braces. In a template for which ``str.format`` raises, all braces other than one ``{}`` stand for themselves. Raises
    ``ValueError`` for a template without a place for the prompt, or with several.
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
