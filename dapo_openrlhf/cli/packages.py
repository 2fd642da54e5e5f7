"""Checks that the packages of a command are installed before they are imported (standard library only)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping

BASIC = ("pydantic", "yaml")
"""Packages with which every command reads its settings."""
STACK = ("deepspeed", "openrlhf", "ray", "torch", "transformers", "vllm")
OF_COMMAND: Mapping[str, Iterable[str]] = {
    **dict.fromkeys(("train", "eval", "rollout", "bench"), STACK),
    **dict.fromkeys(("submit", "jobs", "logs", "stop"), ("ray",)),
}
"""Further packages of a command that pip alone cannot install as they are needed here."""

ADVICE = """\
These packages are missing: {names}.
pip alone does not install what dapo-openrlhf runs on: some packages need another order, or are built in a way of their own.
In a checkout of the project, `make setup` makes .venv with all of them; the command is .venv/bin/dapo-openrlhf then."""


def check_packages(names: Iterable[str]) -> None:
    """End the process with status 2 and advice when packages are missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        print(ADVICE.format(names=", ".join(missing)), file=sys.stderr)
        sys.exit(2)
