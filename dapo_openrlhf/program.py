"""The name of this command, so that the commands that it prints can be pasted as they stand (standard library only)."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "dapo-openrlhf"


def program() -> str:
    """How this process was called: by its name where PATH leads to it, else by a path, or as a module of this Python."""
    called = Path(sys.argv[0])
    if called.name == NAME and (found := shutil.which(NAME)) and os.path.realpath(found) == os.path.realpath(called):
        return NAME
    beside = Path(sys.executable).with_name(NAME)
    if called.name != NAME and not beside.is_file():
        return f"{shlex.quote(sys.executable)} -m dapo_openrlhf"
    script = called if called.name == NAME else beside
    if (found := shutil.which(NAME)) and os.path.realpath(found) == os.path.realpath(script):
        return NAME
    return shlex.quote(_short(script))


def beside(name: str) -> str:
    """How another command of this environment is called, such as ``tensorboard``."""
    script = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not script.is_file() or (found is not None and os.path.realpath(found) == os.path.realpath(script)):
        return name
    return shlex.quote(_short(script))


def _short(path: Path) -> str:
    """A path from the current folder where it is below it, otherwise whole."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
