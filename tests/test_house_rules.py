"""The house's rules, as CONTRIBUTING.md states them, where a syntax tree can tell."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_house import FILES, PACKAGE, ROOT, parsed, short
from test_layers import IMPORTS, folder_of

READS_CONFIGURATION = {"config", "cli", "backend/run", "bench", "plan", "check", "__main__"}
"""Folders that build components from it."""
COMPARES_CONFIGURATIONS = "pipeline.resume"
"""Says which settings a resumed run may change, and so takes two of them."""
JUDGED_BY_SECTION = "rewards.settings"
"""Makes of the section ``reward`` what reward processes are told."""

OWN_DEADLINE = {"backend/run/remote_engine.py: health": "pipeline/health.py counts the seconds that it waits"}
"""Functions that await an actor and whose callers set the limit."""


def test_vllm_is_imported_around_engines_and_weights_only() -> None:
    """And where stock OpenRLHF, which has it in its own way, is brought to run on a CPU."""
    importers = {module for module, names in IMPORTS.items() if any(name.split(".")[0] == "vllm" for name in names)}
    assert importers, "the list is what it says"
    assert not {
        module
        for module in importers
        if folder_of(module) not in {"backend/engine", "backend/transfer"} and not module.startswith("bench.stock.")
    }


def test_the_configuration_is_read_where_components_are_built() -> None:
    """Everything else gets single values, or a message of its own."""
    records = re.compile(r"dapo_openrlhf\.config\.\w+\.(Config|\w+Section)")
    readers = {module for module, names in IMPORTS.items() if any(records.fullmatch(name) for name in names)}
    assert "backend.run.launch" in readers, "the list is what it says"
    elsewhere = {module for module in readers if folder_of(module) not in READS_CONFIGURATION}
    assert not {module for module in elsewhere if not module.startswith((COMPARES_CONFIGURATIONS, JUDGED_BY_SECTION))}


def waits_without_deadline(tree: ast.Module, path: str) -> list[str]:
    """Where the answer of an actor is awaited, or got, outside ``asyncio.timeout`` and without one of its own."""
    found = []
    for function, node, timed in _calls(tree, "", False):
        awaited = isinstance(node, ast.Await) and isinstance(node.value, ast.Call)
        call = node.value if isinstance(node, ast.Await) else node
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        asks = awaited and call.func.attr == "remote"
        gets = ast.unparse(call.func) in ("ray.get", "ray.wait") and "timeout" not in {k.arg for k in call.keywords}
        if (asks or gets) and not timed and f"{path}: {function}" not in OWN_DEADLINE:
            found.append(f"{path}: {function}")
    return found


def _calls(tree: ast.AST, function: str, timed: bool) -> Iterator[tuple[str, ast.AST, bool]]:
    """Every node with the function that it is in, and whether that has a deadline around it."""
    for node in ast.iter_child_nodes(tree):
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        limited = isinstance(node, ast.AsyncWith) and any(
            "asyncio.timeout" in ast.unparse(item.context_expr) for item in node.items
        )
        yield name, node, timed
        yield from _calls(node, name, timed or limited)


@pytest.mark.parametrize("path", [*(PACKAGE / "backend" / "run").glob("*.py")], ids=lambda path: path.name)
def test_the_controller_waits_for_actors_with_a_deadline(path: Path) -> None:
    assert not waits_without_deadline(parsed(path), short(path))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("async def f():\n    return await actor.ping.remote()", ["x.py: f"]),
        ("async def f():\n    async with asyncio.timeout(1):\n        return await actor.ping.remote()", []),
        ("async def f():\n    return await all_within([actor.ping.remote()], names, 1.0)", []),
        ("def f():\n    return ray.get(reference)", ["x.py: f"]),
        ("def f():\n    return ray.get(reference, timeout=1.0)", []),
    ],
)
def test_waits_without_a_deadline_are_found(source: str, found: list[str]) -> None:
    assert waits_without_deadline(ast.parse(source), "x.py") == found


def test_rewards_are_asked_for_and_responses_never_read_in_the_pipeline() -> None:
    """The controller sees metadata: only reward workers import what judges, and no pipeline matches text."""
    processes = re.compile(r"dapo_openrlhf\.rewards\.(child|sources|function|verifier|algebra|evaluate|expression)\b")
    assert not {
        module
        for module, names in IMPORTS.items()
        if folder_of(module) in {"pipeline", "backend/run"} and any(map(processes.match, names))
    }


def test_every_dependency_is_pinned_and_has_a_reason() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    direct = re.findall(r"^([a-z-]+)", setup["options"]["install_requires"], flags=re.MULTILINE)
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    assert direct and not [name for name in direct if not re.search(rf"\b{name}\b", reasons)]
    for lock in (ROOT / "scripts" / "lock").glob("*.txt"):
        lines = [line.split("#")[0].strip() for line in lock.read_text().splitlines()]
        loose = [line for line in lines if line and not line.startswith("-") and "==" not in line and " @ " not in line]
        assert not loose, f"{lock.name}: {loose}"
        if lock.name in ("cpu.txt", "cuda.txt"):
            assert not [name for name in direct if not any(line.lower().startswith(f"{name}==") for line in lines)]


def test_the_pipeline_never_blocks_its_loop() -> None:
    """Its tests run it in virtual time, in which a sleep of the thread would be a real one."""
    assert not [
        f"{short(path)}:{node.lineno}"
        for path in FILES
        if short(path).startswith("pipeline/")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    ]


RUNS_WHAT_IT_READS = re.compile(
    r"(pickle|cPickle|cloudpickle|dill|marshal|shelve|joblib)\.(load|loads|Unpickler|open)|(pandas|pd)\.read_pickle|eval|exec"
)
READS_OWN_PROCESSES = {
    "dataset/readers.py: pickle.load": "from processes that it started itself, over a socket",
    "backend/openrlhf_args.py: exec": "statements of the installed OpenRLHF",
}


def unsafe_reads(tree: ast.Module, path: str) -> list[str]:
    """Calls that may run what a file holds: pickles, YAML and torch archives without their safe loaders."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        unsafe = (
            RUNS_WHAT_IT_READS.fullmatch(name) is not None
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name in ("yaml.load", "yaml.load_all") and options.get("Loader") not in ("Loader", "yaml.SafeLoader"))
            or re.fullmatch(r"yaml\.(full|unsafe)_load(_all)?", name) is not None
            or options.get("allow_pickle", "False") != "False"
            or (options.get("trust_remote_code") == "True" and name.endswith("from_pretrained"))
        )
        if unsafe:
            found.append(f"{path}: {name}")
    return found


def test_no_file_is_read_that_could_run() -> None:
    found = {place for path in FILES if PACKAGE in path.parents for place in unsafe_reads(parsed(path), short(path))}
    assert found == set(READS_OWN_PROCESSES)


@pytest.mark.parametrize(
    ("call", "unsafe"),
    [
        ("torch.load(f)", True), ("torch.load(f, weights_only=False)", True), ("torch.load(f, weights_only=True)", False),
        ("yaml.load(t, Loader=yaml.FullLoader)", True), ("yaml.load(t, Loader=Loader)", False), ("yaml.safe_load(t)", False),
        ("np.load(f, allow_pickle=True)", True), ("np.load(f)", False), ("pickle.Unpickler(f)", True), ("json.loads(t)", False),
        ("AutoConfig.from_pretrained(p, trust_remote_code=True)", True), ("model.eval()", False),
    ],
)  # fmt: skip
def test_reads_that_could_run_are_found(call: str, unsafe: bool) -> None:
    assert unsafe_reads(ast.parse(call), "x.py") == ([f"x.py: {call.partition('(')[0]}"] if unsafe else [])


def test_no_default_value_is_of_the_moment_of_import() -> None:
    """A stream or a folder of the process that is taken as a default is the one that was there when the file was imported."""
    taken = [
        f"{short(path)}: {node.name}: {ast.unparse(default)}"
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for default in [*node.args.defaults, *(given for given in node.args.kw_defaults if given)]
        if re.match(r"sys\.(std|argv|path)|os\.environ|(os|time|Path)\.\w+\(", ast.unparse(default))
    ]
    assert taken == []
