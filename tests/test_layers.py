"""Folders show the way of the data: each may import only what :data:`MAY_IMPORT` gives it, and no import goes in a circle."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dapo_openrlhf

PACKAGE = "dapo_openrlhf"
FOLDER = Path(dapo_openrlhf.__file__).parent
ROOT = FOLDER.parent

PURE = {"whole_file", "program", "types", "algorithm", "config", "pipeline"}
"""What a laptop runs without Ray, vLLM or DeepSpeed."""
BACKEND = {"backend", "backend/transfer", "backend/engine", "backend/trainer", "backend/run"}

MAY_IMPORT: Mapping[str, set[str]] = {
    "whole_file": set(),
    "program": set(),
    "types": set(),
    "stopping": set(),
    "heartbeat": set(),
    "algorithm": {"types"},
    "config": {"algorithm"},
    "pipeline": {"whole_file", "types", "algorithm", "config"},
    "rewards": {"types", "config"},
    "environments": {"types", "rewards"},
    "dataset": {"whole_file", "types", "config", "rewards"},
    "backend": {"types", "config", "environments", "pipeline"},
    "backend/transfer": {"types", "pipeline", "backend"},
    "backend/engine": {"types", "environments", "pipeline", "backend", "backend/transfer"},
    "backend/trainer": {"whole_file", "types", "algorithm", "pipeline", "backend", "backend/transfer"},
    "backend/run": {
        *PURE,
        "stopping",
        "heartbeat",
        "rewards",
        "environments",
        "dataset",
        "backend",
        "backend/transfer",
        "backend/engine",
        "backend/trainer",
    },
    "report": PURE,
    "plan": PURE,
    "check": {*PURE, "rewards", "environments", "dataset", "backend", "backend/run", "plan"},
    "convert": {"algorithm", "config"},
    "prepare": {*PURE, "rewards", "dataset"},
    "bench": {*PURE, "stopping", "heartbeat", "rewards", *BACKEND, "report"},
    "cli": {
        *PURE,
        "stopping",
        "heartbeat",
        "rewards",
        "backend/run",
        "report",
        "plan",
        "check",
        "convert",
        "prepare",
        "bench",
    },
    "__main__": {"whole_file", "stopping", "config", "convert", "cli"},
}
"""Folder (or file at the top), and the folders it may import besides itself. CONTRIBUTING.md draws the same table."""

EDGE = {"ray", "vllm", "deepspeed", "openrlhf", "transformers", "torch", "numpy"}
"""What only the backend and the benchmarks import, and whoever is named in :data:`OUTSIDE`."""

OUTSIDE: Mapping[str, set[str]] = {
    "stopping": {"psutil"},
    "config": {"pydantic", "yaml"},
    "algorithm.loss": {"torch"},
    "algorithm.correction": {"torch"},
    "algorithm.objective": {"torch"},
    "plan.engine_fit": {"numpy"},
    "plan.fit": {"numpy"},
    "plan.least_squares": {"numpy"},
    "algorithm.kl": {"torch"},
    "algorithm.gae": {"torch"},
    "pipeline.manifest": {"xxhash"},
    "dataset.rows": {"pyarrow"},
    "dataset.hub_sets": {"datasets"},
    "dataset.own_code": {"transformers"},
    "dataset.renderer": {"jinja2", "transformers"},
    "environments.openrlhf_agent": {"openrlhf"},
    "rewards.algebra": {"mpmath"},
    "rewards.evaluate": {"mpmath"},
    "report": {"matplotlib", "tensorboard"},
    "report.live": {"rich"},
    "report.wandb_run": {"wandb"},
    "plan.picture": {"matplotlib"},
    "check": {"psutil"},
    "prepare.sources": {"datasets", "reasoning_gym"},
    "prepare.tokenizer": {"transformers"},
}
"""What a folder or one module may import from outside the standard library."""


def module_of(path: Path) -> str:
    """Dotted name within the package, "" for the package itself."""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(FOLDER.rglob("*.py"))}


def folder_of(module: str) -> str:
    """The entry of MAY_IMPORT that a module belongs to; "" for the package itself. Fails for a module without a place."""
    parts = module.split(".")
    for entry in ("/".join(parts[:2]), parts[0]):
        if entry in MAY_IMPORT or not entry:
            return entry
    pytest.fail(f"{PACKAGE}.{module} is in no folder of MAY_IMPORT in {Path(__file__).name}")


def imports_of(source: str, module: str, *, is_package: bool) -> set[str]:
    """Absolute dotted names of all that a source imports, anywhere in it, for type checking only or by name."""
    names: set[str] = set()
    own = [PACKAGE, *filter(None, module.split("."))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = own if is_package else own[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names


def target_of(name: str) -> str:
    """The module of this package that a dotted name leads into: the longest part of it that is a module."""
    parts = name.split(".")[1:]
    while ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def offences(module: str, imported: Iterable[str]) -> list[str]:
    """What a module imports and may not, in words."""
    folder = folder_of(module)
    outside = OUTSIDE.get(module.split(".")[0], set()) | OUTSIDE.get(module, set())
    found = set()
    for name in imported:
        top = name.split(".")[0]
        if top == PACKAGE:
            target = folder_of(target_of(name))
            if target not in ("", folder, *MAY_IMPORT.get(folder, ())):
                found.add(f"{PACKAGE}.{target_of(name)} of {target}")
        elif top in EDGE:
            if folder not in BACKEND | {"bench"} and top not in outside:
                found.add(f"{top}, which only the backend may")
        elif folder not in BACKEND | {"bench", "cli"} and top not in sys.stdlib_module_names | outside:
            found.add(f"{top} from outside the standard library")
    return sorted(found)


def sources() -> dict[str, set[str]]:
    """What each module imports."""
    return {
        module: imports_of(path.read_text(), module, is_package=path.name == "__init__.py")
        for module, path in MODULES.items()
    }


IMPORTS = sources()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or PACKAGE)
def test_module_imports_only_what_its_folder_may(module: str) -> None:
    found = offences(module, IMPORTS[module])
    assert not found, f"{PACKAGE}.{module} ({folder_of(module)}) imports {'; '.join(found)}"


def test_no_import_goes_in_a_circle() -> None:
    """Between files, imports inside functions and for type checking included."""
    graph = {
        module: {target_of(name) for name in names if name.split(".")[0] == PACKAGE} - {module, ""}
        for module, names in IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_folders_do_not_import_each_other() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()


def test_contributing_draws_the_same_table() -> None:
    drawn = re.findall(r"^\| `([a-z_/]+)` +\| ([^|]*?) +\|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    table = [(folder, {*re.findall(r"`([a-z_/]+)`", names)}) for folder, names in drawn if folder in MAY_IMPORT]
    assert dict(table) == MAY_IMPORT
    assert len(table) == len(MAY_IMPORT), "a folder stands there twice"


@functools.cache
def names_in(module: str) -> set[str]:
    """Whatever a module's source gives a name, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def does_not_exist(imported: str) -> bool:
    """Whether a dotted name of this package leads to neither a module nor something in one."""
    target = target_of(imported)
    rest = imported.removeprefix(PACKAGE).removeprefix(".").removeprefix(target).removeprefix(".")
    return bool(rest) and rest not in names_in(target)


def test_what_is_imported_from_the_package_exists() -> None:
    """Also within functions that only a GPU runs."""
    for module, imported in IMPORTS.items():
        missing = [name for name in imported if name.split(".")[0] == PACKAGE and does_not_exist(name)]
        assert not missing, f"{PACKAGE}.{module} imports {', '.join(missing)}"


def test_an_import_that_does_not_exist_is_found() -> None:
    assert does_not_exist(f"{PACKAGE}.types.Prompts")
    assert does_not_exist(f"{PACKAGE}.typing")
    assert not does_not_exist(f"{PACKAGE}.types.Prompt")
    assert not does_not_exist(f"{PACKAGE}.types")


def test_a_module_without_a_place_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"dapo_openrlhf\.utils is in no folder of MAY_IMPORT"):
        offences("utils", {f"{PACKAGE}.types"})


@pytest.mark.parametrize(
    ("module", "source", "offence"),
    [
        ("pipeline.staleness", "import torch", "torch, which only the backend may"),
        (
            "algorithm.loss",
            "from dapo_openrlhf.pipeline.batch import Sample",
            "dapo_openrlhf.pipeline.batch of pipeline",
        ),
        ("types", "from . import config", "dapo_openrlhf.config of config"),
        ("pipeline.staleness", "import pydantic", "pydantic from outside the standard library"),
        ("algorithm.loss", "import ray", "ray, which only the backend may"),
        ("pipeline.conductor", "def f():\n    import vllm.config", "vllm, which only the backend may"),
        (
            "pipeline.conductor",
            "from dapo_openrlhf.backend.run.launch import run",
            "dapo_openrlhf.backend.run.launch of backend/run",
        ),
        ("pipeline.conductor", "import importlib\nimportlib.import_module('ray')", "ray, which only the backend may"),
        ("backend.run.launch", "from dapo_openrlhf.cli import train", "dapo_openrlhf.cli.train of cli"),
        (
            "backend.trainer.policy_loss",
            "from ..run.launch import train",
            "dapo_openrlhf.backend.run.launch of backend/run",
        ),
        ("report.summary", "import pandas", "pandas from outside the standard library"),
        ("cli.train", "import ray", "ray, which only the backend may"),
        ("__main__", "from torch import Tensor", "torch, which only the backend may"),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str, offence: str) -> None:
    assert offences(module, imports_of(source, module, is_package=False)) == [offence]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("algorithm.loss", "import torch\nfrom dapo_openrlhf.algorithm.advantage import group_norm"),
        ("pipeline.conductor", "import asyncio\nfrom dapo_openrlhf.pipeline.batch import plan_batch"),
        ("backend.run.launch", "import ray, torch, numpy\nfrom dapo_openrlhf.algorithm.loss import aggregate"),
        ("report.summary", "import matplotlib.figure\nfrom .run_folder import RunFolder"),
        ("cli.train", "from dapo_openrlhf.backend.run import launch\nfrom dapo_openrlhf import __version__"),
    ],
)
def test_allowed_imports_pass(module: str, source: str) -> None:
    assert offences(module, imports_of(source, module, is_package=False)) == []


def test_the_controllers_part_loads_nothing_heavy() -> None:
    """What the source hides from ``ast`` shows when it is imported."""
    light = [
        f"{PACKAGE}.{module}"
        for module in MODULES
        if module and folder_of(module) in PURE and "torch" not in OUTSIDE.get(module, set())
    ]
    assert len(light) > 10
    script = (
        "import importlib, json, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert "pydantic" in loaded  # the list is what it says
    assert loaded & (EDGE | {"pyarrow", "matplotlib", "tensorboard"}) == set()
