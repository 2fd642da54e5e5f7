"""What the versions of vLLM that this project drives take and give, at every place where it touches their internals.

``python tests/vllm_signatures.py [FOLDER]`` reads the installed version, or the one whose package is in FOLDER (an unpacked
wheel), and puts it into ``tests/golden/vllm_signatures.json``.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "vllm_signatures.json"

FUNCTIONS = {
    "SamplingParams": "sampling_params",
    "EngineCoreRequest": "v1/engine/__init__",
    "EngineCoreOutput": "v1/engine/__init__",
    "EngineCoreOutputs": "v1/engine/__init__",
    "FinishReason": "v1/engine/__init__",
    "PauseState": "v1/core/sched/interface",
    "PrefillStats": "v1/metrics/stats",
    "LogprobsLists": "v1/outputs",
    "EngineArgs": "engine/arg_utils",
    "EngineArgs.create_engine_config": "engine/arg_utils",
    "Executor.get_class": "v1/executor/abstract",
    "EngineCore.__init__": "v1/engine/core",
    "InprocClient.__init__": "v1/engine/core_client",
    "InprocClient.add_request": "v1/engine/core_client",
    "InprocClient.abort_requests": "v1/engine/core_client",
    "InprocClient.get_output": "v1/engine/core_client",
    "InprocClient.reset_prefix_cache": "v1/engine/core_client",
    "InprocClient.collective_rpc": "v1/engine/core_client",
    "Scheduler.set_pause_state": "v1/core/sched/scheduler",
    "initialize_layerwise_reload": "model_executor/model_loader/reload/layerwise",
    "finalize_layerwise_reload": "model_executor/model_loader/reload/layerwise",
    "get_layerwise_info": "model_executor/model_loader/reload/layerwise",
    "get_numel_loaded": "model_executor/model_loader/reload/meta",
    "LayerReloadingInfo": "model_executor/model_loader/reload/types",
    "set_current_vllm_config": "config/vllm",
}
"""Functions, methods and the fields of records, with the file that has them."""


def installed() -> tuple[str, Path]:
    """The installed version and its folder, without importing it."""
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    return version_of(folder), folder


def version_of(folder: Path) -> str:
    """The release that a package's own file tells."""
    text = (folder / "_version.py").read_text()
    assigned = {
        target.id: statement.value
        for statement in ast.walk(ast.parse(text))
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return str(ast.literal_eval(assigned["__version__"])).partition("+")[0]


def signatures(folder: Path) -> dict[str, list[str]]:
    """Parameters (those with a default end in ``=``) or fields of each of :data:`FUNCTIONS`, in their order."""
    return {name: list(_entry(folder, name, file)) for name, file in FUNCTIONS.items()}


def _entry(folder: Path, name: str, file: str) -> Iterator[str]:
    body: list[ast.stmt] = ast.parse((folder / f"{file}.py").read_text()).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next(each for each in body if getattr(each, "name", None) == part)
        body = found.body if isinstance(found, ast.ClassDef) else []
    if isinstance(found, ast.ClassDef):
        yield from _fields(found)
    else:
        assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _parameters(found.args)


def _fields(record: ast.ClassDef) -> Iterator[str]:
    for statement in record.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id + ("" if statement.value is None else "=")
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id + "="


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    ordinary = [*arguments.posonlyargs, *arguments.args]
    without = len(ordinary) - len(arguments.defaults)
    for number, argument in enumerate(ordinary):
        if argument.arg not in ("self", "cls"):
            yield argument.arg + ("=" if number >= without else "")
    if arguments.vararg:
        yield f"*{arguments.vararg.arg}"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield f"{argument.arg}:" + ("" if default is None else "=")
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


def known() -> Mapping[str, Mapping[str, list[str]]]:
    """By version."""
    versions: Mapping[str, Mapping[str, list[str]]] = json.loads(GOLDEN.read_text())
    return versions


if __name__ == "__main__":
    version, folder = (
        (version_of(Path(sys.argv[1]) / "vllm"), Path(sys.argv[1]) / "vllm") if sys.argv[1:] else installed()
    )
    every = {**(known() if GOLDEN.exists() else {}), version: signatures(folder)}
    GOLDEN.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")
