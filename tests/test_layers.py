"""Dependencies point down only. Every module has its place in LAYERS; a new one must be placed there.

| layer | modules                          | may import                                                     |
|-------|----------------------------------|----------------------------------------------------------------|
| 0     | pure                             | standard library, layer 0; ``config`` also pydantic and yaml   |
| 1     | maths                            | and layer 1; ``loss``, ``kl``, ``gae`` also torch              |
| 2     | asynchronous                     | and layers 1 and 2, but no torch; ``prompts`` also pyarrow     |
| 3     | ``judge``                        | standard library, layer 0, ``judge``; mpmath in two files |
| 3     | ``backend`` (and only it: Ray..) | anything but ``report`` and ``cli``                            |
| 4     | ``report``                       | layers 0 to 2, ``report``, matplotlib, tensorboard             |
| 4     | ``prepare``                      | layers 0 to 2, ``prepare``, and what its sources come through  |
| 4     | ``ablation``                     | layers 0 to 2, ``report``, ``ablation``, matplotlib            |
| 4     | ``bench``                        | anything but ``cli``: it runs stock OpenRLHF too               |
| 5     | ``cli``, ``__main__``            | anything but what only the backend may import                  |
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

import dapo_openrlhf

PACKAGE = "dapo_openrlhf"
FOLDER = Path(dapo_openrlhf.__file__).parent

LAYERS = {
    "0": {
        "", "types", "config", "staleness", "dynamic_sampling", "ledger", "verifier", "eval_metrics", "intervals",
        "algorithm", "presets", "cautions", "gold", "input_template",
    },
    "1": {"advantage", "aggregation", "overlong", "batch", "loss", "kl", "gae"},
    "2": {
        "events", "event_log", "metrics", "rollout_queue", "rollout", "pipeline", "prompts", "ports", "evaluation",
        "engine_pool", "checkpoint", "reward_attempts", "agreement", "rows", "dataset", "bad_updates", "outage", "resume",
        "suspects",
    },
    "judge": {"judge"},
    "backend": {"backend"},
    "report": {"report"},
    "prepare": {"prepare"},
    "ablation": {"ablation"},
    "bench": {"bench"},
    "cli": {"cli", "__main__"},
}  # fmt: skip
"""Modules, or whole folders, by layer; "" is the package itself."""

BELOW = {
    "0": {"0"},
    "1": {"0", "1"},
    "2": {"0", "1", "2"},
    "judge": {"0", "judge"},
    "backend": {"0", "1", "2", "judge", "backend"},
    "report": {"0", "1", "2", "report"},
    "prepare": {"0", "1", "2", "prepare"},
    "ablation": {"0", "1", "2", "report", "ablation"},
    "bench": {"0", "1", "2", "judge", "backend", "report", "bench"},
    "cli": set(LAYERS),
}
"""Layers that a layer may import."""

OUTSIDE = {
    "config": {"pydantic", "yaml"},
    "loss": {"torch"},
    "kl": {"torch"},
    "gae": {"torch"},
    "rows": {"pyarrow"},
    "dataset.renderer": {"jinja2", "transformers"},
    "judge.algebra": {"mpmath"},
    "judge.evaluate": {"mpmath"},
    "report": {"matplotlib", "tensorboard"},
    "ablation.figures": {"matplotlib"},
    "prepare.sources": {"datasets", "reasoning_gym"},
    "prepare.tokenizer": {"transformers"},
}
"""What one module or folder may import besides what its whole layer may."""

WITH_TORCH = {"loss", "kl", "gae"}
"""Maths that the controller must not import."""

BACKEND_ONLY = {"ray", "vllm", "deepspeed", "openrlhf", "transformers", "torch"}
"""Imported in the layers of EDGE only; torch in WITH_TORCH too."""

EDGE = {"backend", "bench"}


def module_of(path: Path) -> str:
    """Dotted name within the package, "" for the package itself."""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(FOLDER.rglob("*.py"))}


def place_of(module: str) -> tuple[str, str]:
    """The layer of a module, and the entry of LAYERS that puts it there. Fails for a module without a place."""
    head = module.split(".")[0]
    for layer, members in LAYERS.items():
        if head in members:
            return layer, head
    pytest.fail(f"{PACKAGE}.{module} is in no layer: place it in LAYERS of {Path(__file__).name}")


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


def offences(module: str, imported: set[str]) -> list[str]:
    """What a module imports and may not, in words."""
    layer, entry = place_of(module)
    outside = OUTSIDE.get(entry, set()) | OUTSIDE.get(module, set())
    found = set()
    for name in imported:
        top = name.split(".")[0]
        if top == PACKAGE:
            target = target_of(name)
            its_layer, its_entry = place_of(target)
            if its_layer not in BELOW[layer] or (its_entry in WITH_TORCH and layer in ("2", "report")):
                found.add(f"{PACKAGE}.{target} of layer {its_layer}")
        elif top in BACKEND_ONLY:
            if layer not in EDGE and top not in outside:
                found.add(f"{top}, which only the backend may")
        elif layer not in EDGE | {"cli"} and top not in sys.stdlib_module_names | outside:
            found.add(f"{top} from outside the standard library")
    return sorted(found)


def target_of(name: str) -> str:
    """The module of this package that a dotted name leads into: the longest part of it that is a module."""
    parts = name.split(".")[1:]
    while ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or PACKAGE)
def test_module_imports_only_what_its_layer_may(module: str) -> None:
    path = MODULES[module]
    imported = imports_of(path.read_text(), module, is_package=path.name == "__init__.py")
    found = offences(module, imported)
    assert not found, f"{PACKAGE}.{module} (layer {place_of(module)[0]}) imports {'; '.join(found)}"


def test_the_layers_overlap_nowhere() -> None:
    every = [entry for members in LAYERS.values() for entry in members]
    assert len(every) == len(set(every))


def test_a_module_without_a_place_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"dapo_openrlhf\.utils is in no layer: place it in LAYERS"):
        offences("utils", set())


@pytest.mark.parametrize(
    ("module", "source", "offence"),
    [
        ("staleness", "import torch", "torch, which only the backend may"),
        ("staleness", "from dapo_openrlhf.batch import Sample", "dapo_openrlhf.batch of layer 1"),
        ("staleness", "from dapo_openrlhf import batch", "dapo_openrlhf.batch of layer 1"),
        ("staleness", "from . import batch", "dapo_openrlhf.batch of layer 1"),
        ("staleness", "from .batch import Sample", "dapo_openrlhf.batch of layer 1"),
        ("staleness", "import pydantic", "pydantic from outside the standard library"),
        ("batch", "import torch.nn", "torch, which only the backend may"),
        ("loss", "import ray", "ray, which only the backend may"),
        ("pipeline", "def f():\n    import vllm.config", "vllm, which only the backend may"),
        ("pipeline", "from dapo_openrlhf.loss import aggregate", "dapo_openrlhf.loss of layer 1"),
        ("pipeline", "from dapo_openrlhf.backend.launch import run", "dapo_openrlhf.backend.launch of layer backend"),
        ("pipeline", "import importlib\nimportlib.import_module('ray')", "ray, which only the backend may"),
        ("pipeline", "import numpy", "numpy from outside the standard library"),
        ("backend.launch", "from dapo_openrlhf.cli import train", "dapo_openrlhf.cli.train of layer cli"),
        ("backend.launch", "from ..report.summary import Summary", "dapo_openrlhf.report.summary of layer report"),
        ("report.summary", "from dapo_openrlhf.backend import launch", "dapo_openrlhf.backend.launch of layer backend"),
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
        ("config", "import yaml\nfrom pydantic import Field\nfrom dapo_openrlhf.types import Prompt"),
        ("loss", "import torch\nfrom dapo_openrlhf.advantage import group_norm"),
        ("pipeline", "import asyncio\nfrom dapo_openrlhf.batch import plan_batch"),
        ("backend.launch", "import ray, torch, numpy\nfrom dapo_openrlhf.loss import aggregate"),
        ("report.summary", "import matplotlib.figure\nfrom .run_folder import RunFolder"),
        ("cli.train", "from dapo_openrlhf.backend import launch\nfrom dapo_openrlhf import __version__"),
    ],
)
def test_allowed_imports_pass(module: str, source: str) -> None:
    assert offences(module, imports_of(source, module, is_package=False)) == []


def test_layers_0_to_2_load_nothing_heavy() -> None:
    """What the source hides from ``ast`` shows when it is imported."""
    light = [
        f"{PACKAGE}.{module}".rstrip(".")
        for module in MODULES
        if module.split(".")[0] in (LAYERS["0"] | LAYERS["1"] | LAYERS["2"]) - WITH_TORCH
    ]
    assert len(light) > 10
    script = (
        "import importlib, json, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert "pydantic" in loaded  # the list is what it says
    assert loaded & (BACKEND_ONLY | {"numpy", "pyarrow", "matplotlib", "tensorboard"}) == set()
