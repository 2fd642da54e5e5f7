"""Builds the namespace of settings that OpenRLHF's classes read.

OpenRLHF's parser is defined under ``if __name__ == "__main__"`` in ``openrlhf/cli/train_ppo_ray.py``. Its statements
are executed here up to ``parse_args``, so that every setting that OpenRLHF's modules read exists and has OpenRLHF's own
default. Our settings then override these defaults.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def openrlhf_namespace(settings: Mapping[str, Any]) -> SimpleNamespace:
    """OpenRLHF's defaults, overridden by ``settings`` (dotted names). Raises ``KeyError`` for unknown names."""
    flat = vars(_parser().parse_args([]))
    for name, value in settings.items():
        if name not in flat:
            raise KeyError(f"OpenRLHF has no setting {name}")
        flat[name] = value
    return _nested(flat)


def _parser() -> argparse.ArgumentParser:
    spec = importlib.util.find_spec("openrlhf")
    if spec is None or spec.origin is None:
        raise ImportError("openrlhf is not installed; run `make setup`")
    path = Path(spec.origin).parent / "cli" / "train_ppo_ray.py"
    main = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    statements: list[ast.stmt] = []
    for statement in main.body:
        if "parse_args" in ast.unparse(statement):
            break
        statements.append(statement)
    scope: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    exec(compile(ast.Module(body=statements, type_ignores=[]), str(path), "exec"), scope)
    parser = scope["parser"]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def _nested(flat: Mapping[str, Any]) -> SimpleNamespace:
    root = SimpleNamespace()
    for name, value in flat.items():
        *sections, key = name.split(".")
        node = root
        for section in sections:
            if not hasattr(node, section):
                setattr(node, section, SimpleNamespace())
            node = getattr(node, section)
        setattr(node, key, value)
    return root
