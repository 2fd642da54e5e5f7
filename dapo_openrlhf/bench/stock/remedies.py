"""Changes modules right after they are imported, without touching their files (standard library)."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Remedies: TypeAlias = Mapping[str, Callable[[Any], None]]
"""Functions of a module that was just imported, by the module's name."""


def apply(remedies: Remedies) -> None:
    """Have each remedy applied in this process when its module is imported, before the importer sees it."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(remedies))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules that have a remedy where Python finds them, and has the remedy applied after the import."""

    def __init__(self, remedies: Remedies) -> None:
        self._remedies = remedies

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._remedies:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._remedies[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module with its own loader and then applies a remedy."""

    def __init__(self, loader: importlib.abc.Loader, remedy: Callable[[Any], None]) -> None:
        self._loader = loader
        self._remedy = remedy

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._loader.exec_module(module)
        self._remedy(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # everything else that the loader can do: source, resources
