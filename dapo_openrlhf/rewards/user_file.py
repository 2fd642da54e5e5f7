"""Runs a Python file that a user names, in a process that can be killed (standard library only)."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def load_file(file: str, name: str) -> ModuleType:
    """Load a Python file as the module ``name``. Raises what the file raises, ``ImportError`` if it is no Python."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
