"""What this project takes from OpenRLHF is where it expects it, in the version that is pinned."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace

pytestmark = pytest.mark.real

PACKAGE = Path(importlib.util.find_spec("openrlhf").submodule_search_locations[0])  # type: ignore[union-attr, index]


def _paths_read() -> set[str]:
    """Every ``args.a.b`` that OpenRLHF's PPO modules read."""
    files = [PACKAGE / "trainer" / "ray" / name for name in ("ppo_actor.py", "launcher.py", "vllm_engine.py")]
    files += [*(PACKAGE / "utils" / "deepspeed").glob("*.py"), *(PACKAGE / "trainer" / "ppo_utils").glob("*.py")]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                match = re.search(r"(?:^|\.)args((?:\.\w+)+)$", ast.unparse(node))
                if match:
                    found.add(match[1][1:])
    return found


def test_every_setting_openrlhf_reads_exists_in_the_namespace() -> None:
    namespace = openrlhf_namespace({})
    paths = _paths_read()
    assert len(paths) > 50
    missing = []
    for path in sorted(paths):
        node = namespace
        for name in path.split("."):
            if not hasattr(node, name):
                missing.append(path)
                break
            node = getattr(node, name)
    assert missing == []


def test_our_settings_are_openrlhfs() -> None:
    namespace = openrlhf_namespace({"actor.adam.lr": 0.5, "ds.zero_stage": 3})
    assert namespace.actor.adam.lr == 0.5
    assert namespace.ds.zero_stage == 3
    with pytest.raises(KeyError, match=r"actor\.adam\.rate"):
        openrlhf_namespace({"actor.adam.rate": 0.5})


@pytest.mark.parametrize(
    ("module", "actor", "methods"),
    [
        ("engine.actor", "EngineActor", ["_configure_device_env", "_configure_vllm_env"]),
        ("trainer.actor", "PolicyActor", ["_setup_distributed", "get_master_addr_port", "save_model"]),
    ],
)
def test_actors_extend_openrlhfs_where_they_run(module: str, actor: str, methods: list[str]) -> None:
    check = (
        f"from dapo_openrlhf.backend.{module} import {actor} as ours\n"
        "base = ours.__mro__[1]\n"
        "assert base.__module__.startswith('openrlhf.trainer.ray'), base\n"
        f"assert all(hasattr(base, name) for name in {methods!r})\n"
        "import sys\n"
        f"assert ('vllm' in sys.modules) == ({module!r} == 'engine.actor'), 'each process imports only what it needs'\n"
        f"assert ('deepspeed' in sys.modules) == ({module!r} == 'trainer.actor'), 'each process imports only what it needs'\n"
    )
    environment = os.environ | {"DAPO_OPENRLHF_ACTOR": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_controller_imports_none_of_it() -> None:
    check = (
        "import dapo_openrlhf.backend.run.launch, sys\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'openrlhf', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=HANG_SECONDS)
