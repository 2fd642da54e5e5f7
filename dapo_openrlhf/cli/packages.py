"""Whether what a command imports is installed, asked before it is imported (standard library only)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping

BASIC = ("pydantic", "yaml")
"""What every command reads its settings with."""
STACK = ("deepspeed", "openrlhf", "ray", "torch", "transformers", "vllm")
OF_COMMAND: Mapping[str, Iterable[str]] = {"train": STACK, "eval": STACK, "bench": STACK, "submit": ("ray",)}
"""What else a command imports, where pip alone cannot install it as it is needed here."""

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
