"""The text around a problem that tells a model how to answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from dapo_openrlhf.config.errors import ConfigError

DAPO = (
    "Work through the problem below step by step. Close your response with a line of the form Answer: $Answer "
    "(no quotation marks), in which $Answer stands for the solution.\n\n"
    "{}\n\n"
    'Do not forget: the answer belongs on a line of its own, behind "Answer:".'
)
"""A template equivalent to the DAPO recipe's: the task, the form of the last line, a reminder at the end."""

_ASKS_FOR_ANSWER_LINE = re.compile(r"\bAnswer:\s*\$Answer\b")


def wrapper(template: str) -> Callable[[str], str]:
    """The function that wraps a problem, by ``--template``: ``dapo``, ``none``, or a text with ``{}`` for the problem.

    A problem that is already wrapped stays as it is. Raises ``ConfigError`` for a text without ``{}``.
    """
    if template == "none":
        return lambda text: text
    if template == "dapo":
        return lambda text: text if _ASKS_FOR_ANSWER_LINE.search(text) else DAPO.replace("{}", text)
    if "{}" not in template:
        raise ConfigError(f"--template: {template!r} is neither dapo nor none, and has no {{}} where the problem goes")
    before, _, after = template.partition("{}")

    def wrap(text: str) -> str:
        return text if text.startswith(before) and text.endswith(after) else f"{before}{text}{after}"

    return wrap if before or after else lambda text: text
