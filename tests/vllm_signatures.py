"""Reads from source, without importing it, what a version of vLLM offers, and what this package asks of it.

``python tests/vllm_signatures.py FOLDER ...`` writes ``tests/golden/vllm_signatures.json`` anew from unpacked packages of vLLM.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dapo_openrlhf"
EDGE = ("backend/engine", "backend/transfer")
TABLE = Path(__file__).parent / "golden" / "vllm_signatures.json"

ENGINE, RELOAD = "vllm.v1.engine", "vllm.model_executor.model_loader.reload"
EXPERTS = "vllm.model_executor.layers.fused_moe"
CORE, INNER = "vllm.v1.engine.core_client:InprocClient", "vllm.v1.engine.core:EngineCore"
OBJECTS = {
    "self._core": CORE,
    "core": CORE,
    "core.engine_core": INNER,
    "inner": INNER,
    "inner.scheduler": "vllm.v1.core.sched.scheduler:Scheduler",
    "core.engine_core.vllm_config": "vllm.config.vllm:VllmConfig",
    "core.engine_core.vllm_config.parallel_config": "vllm.config.parallel:ParallelConfig",
    "self._core.get_output()": f"{ENGINE}:EngineCoreOutputs",
    "output": f"{ENGINE}:EngineCoreOutput",
    "output.prefill_stats": "vllm.v1.metrics.stats:PrefillStats",
    "logprobs": "vllm.v1.outputs:LogprobsLists",
    "EngineArgs(**self._engine_args)": "vllm.engine.arg_utils:EngineArgs",
    "config": "vllm.config.vllm:VllmConfig",
    "config.model_config": "vllm.config.model:ModelConfig",
    "model_config": "vllm.config.model:ModelConfig",
    "self.vllm_config": "vllm.config.vllm:VllmConfig",
    "info": f"{RELOAD}.types:LayerReloadingInfo",
    "sizes": f"{EXPERTS}.config:FusedMoEConfig",
}
"""What the expressions of our edge are in vLLM, as far as they are vLLM's."""

GIVEN = {
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model": "()",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.get_model": "()",
    "vllm.v1.worker.worker_base:WorkerBase.vllm_config": "",
    "vllm.v1.worker.worker_base:WorkerBase.rank": "",
    "vllm.v1.worker.worker_base:WorkerBase.device": "",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.shard_indices": "",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbeddingShardIndices.num_org_elements": "",
    f"{EXPERTS}.routed_experts:RoutedExperts.quant_method": "",
    f"{EXPERTS}.routed_experts:RoutedExperts.moe_config": "",
}
"""What the edge asks besides of objects that it names in several ways: a call's arguments, or nothing for an attribute."""

OPTIONAL = {
    "vllm.model_executor.model_loader:mtp_validation",
    "vllm.model_executor.model_loader.mtp_validation:disable_mtp_completeness_check",
    f"{RELOAD}.meta:SKIP_TENSORS",
    f"{RELOAD}.meta:SKIP_LOAD_TENSORS",
}
"""What some versions lack, where ``receivers/reloading.py`` chooses by what there is."""


@dataclass(frozen=True)
class Use:
    """One place of our edge that uses a name of vLLM's; ``arguments`` are those of a call, as source, or None."""

    place: str
    name: str
    arguments: str | None


def uses() -> list[Use]:
    """All uses of vLLM in our edge, those of ``GIVEN`` included."""
    found = [Use("GIVEN", name, arguments or None) for name, arguments in GIVEN.items()]
    for folder in EDGE:
        for file in sorted((PACKAGE / folder).rglob("*.py")):
            found += _uses_of(file)
    return found


def _uses_of(file: Path) -> Iterator[Use]:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imported = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for alias in node.names
    }
    known = imported | (OBJECTS if imported or "core.collective_rpc(" in text else {})
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in imported:
            name = imported[node.id]
        elif isinstance(node, ast.Attribute) and (owner := known.get(ast.unparse(node.value))):
            name = f"{owner.replace(':', '.')}:{node.attr}" if _is_module(owner) else f"{owner}.{node.attr}"
        else:
            continue
        call = calls.get(id(node))
        yield Use(f"{file.name}:{node.lineno}", name, None if call is None else _arguments(call))


def _is_module(owner: str) -> bool:
    return owner.rpartition(":")[2].islower() and not owner.rpartition(":")[2].startswith("_")


def _arguments(call: ast.Call) -> str:
    positional = ["0" for argument in call.args if not isinstance(argument, ast.Starred)]
    named = [f"{keyword.arg}=0" for keyword in call.keywords if keyword.arg is not None]
    return f"({', '.join(positional + named)})"


def offered(root: Path, name: str) -> str | None:
    """What the package below ``root`` has under a name: a signature as source, "attribute", or None."""
    module, _, path = name.partition(":")
    first, *rest = path.split(".")
    place = _define(root, module, first)
    if place is None:
        return "module" if not rest and _file(root, f"{module}.{first}") else None
    home, node = place
    if not rest:
        return _signature(root, home, node)
    assert isinstance(node, ast.ClassDef) and len(rest) == 1, name
    return next((found for each in _lineage(root, home, node) if (found := _member(each, rest[0]))), None)


def _file(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _define(root: Path, module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Where a name of a module is defined, however often it is passed on by imports."""
    file = _file(root, module)
    if file is None:
        return None
    for node in ast.walk(_tree(file)):
        match node:
            case ast.FunctionDef() | ast.ClassDef() if node.name == name and node in _tree(file).body:
                return module, node
            case ast.Assign() if any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
                return module, node
            case ast.AnnAssign(target=ast.Name(id=target)) if target == name and node in _tree(file).body:
                return module, node
            case ast.ImportFrom() if original := _imported(node, name):
                package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *filter(None, [node.module])])
                if origin.split(".")[0] == "vllm" and (found := _define(root, origin, original)):
                    return found
    return None


def _imported(node: ast.ImportFrom, name: str) -> str | None:
    return next((alias.name for alias in node.names if (alias.asname or alias.name) == name), None)


def _lineage(root: Path, module: str, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
    yield node
    for base in node.bases:
        place = _define(root, module, base.id) if isinstance(base, ast.Name) else None
        if place and isinstance(place[1], ast.ClassDef):
            yield from _lineage(root, place[0], place[1])


def _signature(root: Path, module: str, node: ast.stmt) -> str:
    match node:
        case ast.FunctionDef():
            return _plain(node.args)
        case ast.ClassDef():
            classes = [*_lineage(root, module, node)]
            for each in classes:
                for function in each.body:
                    if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                        return _plain(function.args, bound=True)
            return _fields(classes)
        case _:
            return "attribute"


def _fields(classes: list[ast.ClassDef]) -> str:
    fields = {
        node.target.id: node.value is not None
        for each in reversed(classes)
        for node in each.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not ast.unparse(node.annotation).startswith(("ClassVar", "InitVar"))
    }
    needed = [name for name, default in fields.items() if not default]
    return f"({', '.join([*needed, *(f'{name}=...' for name, default in fields.items() if default)])})"


def _member(node: ast.ClassDef, name: str) -> str | None:
    for each in node.body:
        match each:
            case ast.FunctionDef() if each.name == name:
                decorators = {ast.unparse(decorator) for decorator in each.decorator_list}
                return (
                    "attribute"
                    if "property" in decorators
                    else _plain(each.args, bound="staticmethod" not in decorators)
                )
            case ast.AnnAssign(target=ast.Name(id=target)) if target == name:
                return "attribute"
            case ast.Assign() if any(isinstance(target, ast.Name) and target.id == name for target in each.targets):
                return "attribute"
    given = (target for each in ast.walk(node) for target in _targets(each) if isinstance(target, ast.Attribute))
    return next(("attribute" for target in given if ast.unparse(target) == f"self.{name}"), None)


def _targets(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Assign():
            return node.targets
        case ast.AnnAssign():
            return [node.target]
        case _:
            return []


def _plain(arguments: ast.arguments, *, bound: bool = False) -> str:
    """A function's parameters without annotations, with ``...`` for every default, and without ``self`` if it is bound."""
    words = []
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    for index, argument in enumerate(positional):
        if not (bound and index == 0):
            words.append(argument.arg + ("=..." if index >= without else ""))
    if arguments.vararg:
        words.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        words.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        words.append(argument.arg + ("=..." if default is not None else ""))
    if arguments.kwarg:
        words.append(f"**{arguments.kwarg.arg}")
    return f"({', '.join(words)})"


def refused(signature: str, arguments: str) -> str | None:
    """Why a call with these arguments, as source, does not fit a signature; None if it does."""
    if not signature.startswith("("):
        return "is not called"
    parameters = inspect.signature(eval(f"lambda {signature[1:-1]}: 0"))
    try:
        eval(f"bind{arguments}", {"bind": parameters.bind})
    except TypeError as error:
        return str(error)
    return None


def facts(root: Path) -> dict[str, str | None]:
    """What the package below ``root`` offers of all that our edge uses."""
    return {name: offered(root, name) for name in sorted({use.name for use in uses()})}


def table() -> Mapping[str, Mapping[str, str | None]]:
    """The facts of each version that was read, by version."""
    return json.loads(TABLE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def version_of(root: Path) -> str:
    """The version that a package below ``root`` says of itself."""
    text = (root / "vllm" / "_version.py").read_text(encoding="utf-8")
    return next(line.split("'")[1].partition("+")[0] for line in text.splitlines() if line.startswith("__version__ ="))


if __name__ == "__main__":
    TABLE.write_text(json.dumps({version_of(Path(each)): facts(Path(each)) for each in sys.argv[1:]}, indent=1) + "\n")
