"""A process that renders every n-th block of a file's rows (``readers.py`` starts it with ``python -m``).

It sends a pickled message for each of its blocks, and one at the end. It does not import torch, which would take longer
than most files.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from array import array
from pathlib import Path
from socket import socket
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.bad_rows import BadRow
from dapo_openrlhf.dataset.messages import TOKEN_ID, Bad, Good, Refused
from dapo_openrlhf.dataset.rows import blocks
from dapo_openrlhf.dataset.rules import RowRules


def main(handle: int, settings: dict[str, Any]) -> None:
    """Send the results of all blocks, then None."""
    with socket(fileno=handle) as connection, connection.makefile("wb") as file:
        try:
            _send_all(file, settings)
            pickle.dump(None, file)
        except ConfigError as error:
            pickle.dump(Refused(str(error)), file)


def _send_all(file: Any, settings: dict[str, Any]) -> None:
    from dapo_openrlhf.dataset.renderer import Renderer

    rules = RowRules(**settings["rules"])
    try:
        renderer = Renderer(rules)
    except ConfigError as error:
        if isinstance(error.__cause__, ImportError) and sys.argv[3:] != ["torch"]:  # a tokenizer whose code needs it
            os.execv(sys.executable, [*sys.orig_argv, "torch"])
        raise
    most = sys.maxsize if rules.max_rows is None else rules.max_rows
    for index, block in enumerate(blocks(Path(settings["path"]))):
        if block.first >= most:
            return
        if index % settings["processes"] == settings["process"]:
            rows = block.parse()[: most - block.first]
            rendered = renderer.render([row for _, row in rows])
            pickle.dump([_message(number, made) for (number, _), made in zip(rows, rendered, strict=True)], file)
            file.flush()


def _message(number: int, made: Any) -> Good | Bad:
    if isinstance(made, BadRow):
        return Bad(number, made.kind, str(made))
    try:
        rest = json.dumps({"label": made.label, "columns": made.columns}, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return Bad(number, "unreadable", f"its columns cannot be kept: {error}")
    return Good(number, made.text.encode(), array(TOKEN_ID, made.token_ids).tobytes(), rest, made.remarks)


def _plain(value: object) -> str:
    """Text for values that a table may hold but JSON cannot: dates, decimals, bytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    if sys.argv[3:] != ["torch"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
