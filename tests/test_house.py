"""The house's numbers and habits: what CONTRIBUTING.md says of the code, counted in its syntax trees."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dapo_openrlhf"

LONGEST_FILE = 350
LONGEST_FUNCTION = 60
NINE_FUNCTIONS_OF_TEN = 25
MOST_PARAMETERS = 7
NINE_CONSTRUCTORS_OF_TEN = 5
LINES_THAT_REPEAT = 6
TESTS_PER_CODE = 0.9

BLANKET: Mapping[str, str] = {
    "backend/engine/loop.py": "vLLM's core may raise anything; whoever waits on the future is told, or the process ends",
    "backend/run/own_cluster.py": "Ray raises Exception itself when it does not start in time",
    "dataset/template.py": "a chat template is a program, and may raise anything",
    "dataset/renderer.py": "tokenizers, templates and the code that comes with a model may raise anything",
    "report/recorder.py": "a report goes through libraries that may raise anything, and never ends a run",
    "environments/child.py": "a user's file may raise anything",
    "rewards/child.py": "a user's file may raise anything",
    "rewards/replies.py": "a user's object may raise anything when it is read",
    "rewards/sources.py": "a user's reward may raise anything",
}
"""Files of the package that catch ``Exception`` without raising it again, each with its reason."""

BY_NAME: Mapping[str, str] = {
    "ds_id": "DeepSpeed marks the parameters that it has partitioned",
    "get_all_grad_tensors": "only DeepSpeed's ZeRO optimisers have it",
    "value_head_prefix": "OpenRLHF's setting, which not every model's configuration has",
    "_weight_conversions": "transformers' own, which not every model has",
    "tolist": "arrays and tensors of any library have it",
    "_base_executable": "CPython's own, which sys does not declare",
}
"""Attributes that are asked for by a string, each with its reason."""

NO_UTILS = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def short(path: Path) -> str:
    """Below the package, or from the root."""
    return str(path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT))


FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "data").rglob("*.py")])

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(paths: Iterable[Path]) -> Iterator[tuple[Path, Function]]:
    for path in paths:
        for node in ast.walk(parsed(path)):
            if isinstance(node, Function):
                yield path, node


def classes(paths: Iterable[Path]) -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in paths:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                yield path, node


def lines_of(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def arguments_of(node: Function) -> list[ast.arg]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return [argument for argument in every if argument is not None and argument.arg not in ("self", "cls")]


def parameters_of(node: ast.ClassDef) -> int | None:
    """Of its constructor; None where there is none, as in messages and the records of the configuration."""
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            return len(arguments_of(line))
    return None


def at_nine_tenths(values: Iterable[int]) -> int:
    ordered = sorted(values)
    return ordered[int(0.9 * len(ordered))]


def logic(path: Path) -> list[tuple[int, str]]:
    """Numbers and text of the lines that do something: no imports, docstrings, comments, blank lines or lone brackets."""
    left_out: set[int] = set()
    for node in ast.walk(parsed(path)):
        says = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if says or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = enumerate(map(str.strip, path.read_text(encoding="utf-8").splitlines()), start=1)
    return [
        (number, line)
        for number, line in lines
        if number not in left_out and not line.startswith("#") and any(map(str.isalnum, line))
    ]


def repeats(paths: Iterable[Path], count: int) -> list[str]:
    """Where ``count`` lines of logic in a row stand in two files."""
    places: defaultdict[tuple[str, ...], dict[Path, int]] = defaultdict(dict)
    for path in paths:
        lines = logic(path)
        for first in range(len(lines) - count + 1):
            run = lines[first : first + count]
            places[tuple(line for _, line in run)].setdefault(path, run[0][0])
    return [
        " = ".join(f"{short(path)}:{number}" for path, number in where.items())
        for where in places.values()
        if len(where) > 1
    ]


def test_files_are_short() -> None:
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in [*FILES, *SCRIPTS]}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}


def test_functions_fit_a_screen() -> None:
    assert not [
        f"{short(path)}: {node.name}, {lines_of(node)} lines"
        for path, node in functions([*FILES, *SCRIPTS])
        if lines_of(node) > LONGEST_FUNCTION
    ]
    assert at_nine_tenths(lines_of(node) for _, node in functions(FILES)) <= NINE_FUNCTIONS_OF_TEN


def test_constructors_take_little() -> None:
    """Records, those of the configuration and messages among them, have as many fields as they need, and no constructor."""
    counts = [(f"{short(path)}: {node.name}", parameters_of(node)) for path, node in classes([*FILES, *SCRIPTS])]
    assert not [(name, count) for name, count in counts if count is not None and count > MOST_PARAMETERS]
    every = (parameters_of(node) for _, node in classes(FILES))
    assert at_nine_tenths(count for count in every if count is not None) <= NINE_CONSTRUCTORS_OF_TEN


def test_everything_is_annotated() -> None:
    assert not [
        f"{short(path)}: {node.name}"
        for path, node in functions([*FILES, *SCRIPTS])
        if node.returns is None or any(argument.annotation is None for argument in arguments_of(node))
    ]


def test_docstrings_count_no_layers() -> None:
    """Folders are what there is; their order is drawn in CONTRIBUTING.md."""
    assert not [
        short(path) for path in [*FILES, *SCRIPTS] if re.search(r"\blayer \d", path.read_text(encoding="utf-8"))
    ]


def test_every_file_has_a_noun() -> None:
    assert not [short(path) for path in [*FILES, *SCRIPTS] if path.name in NO_UTILS]


def test_blanket_handlers_have_a_reason() -> None:
    """A handler that only cleans up, and ends by raising again, is none."""
    found = {
        short(path)
        for path in [*FILES, *SCRIPTS]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and _blanket(node) and not _raises_again(node)
    }
    assert found <= BLANKET.keys()


def _blanket(node: ast.ExceptHandler) -> bool:
    names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"Exception"}
    return bool(names & {"Exception", "BaseException"})


def _raises_again(node: ast.ExceptHandler) -> bool:
    return isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None


def test_attributes_are_asked_for_by_name_only_with_a_reason() -> None:
    found = {
        node.args[1].value
        for path in [*FILES, *SCRIPTS]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr")
        and isinstance(node.args[1], ast.Constant)
    }
    assert found <= BY_NAME.keys()


def test_ignored_types_have_a_code_and_a_reason() -> None:
    for path in [*FILES, *SCRIPTS]:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT and "type: ignore" in token.string:
                assert re.search(r"# type: ignore\[[a-z-]+\]  # \w+", token.string), f"{short(path)}: {token.line}"


def test_no_logic_stands_twice() -> None:
    assert not repeats(FILES, LINES_THAT_REPEAT)


def test_repeats_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"x{number} = {number}\n" for number in range(LINES_THAT_REPEAT)]
    first, second, other = (tmp_path / name for name in ("one.py", "two.py", "three.py"))
    first.write_text("import os\n\n" + "".join(lines))
    second.write_text('"""Other words."""\n' + "\n# a comment\n".join(lines))
    other.write_text("".join(lines[1:]))
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert repeats([first, second, other], LINES_THAT_REPEAT) == ["one.py:3 = two.py:2"]


def test_no_two_files_of_the_tests_have_one_name() -> None:
    """pytest imports them by their names alone, wherever they are."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_there_is_nearly_as_much_test_as_code() -> None:
    """In lines of logic, the package's against those of its tests."""
    code = sum(len(logic(path)) for path in FILES)
    tests = sum(len(logic(path)) for path in (ROOT / "tests").rglob("*.py"))
    assert tests / code >= TESTS_PER_CODE
