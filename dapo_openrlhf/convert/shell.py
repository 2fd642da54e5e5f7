"""The words of a command in a shell script, without running any of it (standard library)."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

COMMENT = re.compile(r"^\s*#")
ASSIGNMENT = re.compile(r"^\s*(?:export\s+|local\s+|declare\s+(?:-\w+\s+)?)?([A-Za-z_]\w*)=(.*)$", re.DOTALL)
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\[[@*]\])?(?::?[-=]([^{}]*))?\}|\$([A-Za-z_]\w*)")
ARITHMETIC = re.compile(r"\$\(\(([^()]*(?:\([^()]*\)[^()]*)*)\)\)")
REDIRECTION = re.compile(r"^(?:\||\|\||&&|&|;|\d?>.*|\d?<.*|&>.*)$")

OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
DECLARING = ("export", "local", "declare")
MOST_SUBSTITUTIONS = 20
"""How deep defaults may lie in each other; what is deeper stays as it is written."""
HELD = "\0"
"""Stands for a dollar sign that is not to be looked at again, as in a variable's value, which a shell takes as it is."""


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of every command of a script, with its own variables put in.

    Lines that end in a backslash go on in the next one, also over lines of comment, which a shell would take for the end
    of the command. Variables that the script does not set stay in the words as they are written; ``"$@"`` is left out.
    What follows a pipe or a redirection is left out.
    """
    variables: dict[str, list[str]] = {}
    for line in _logical_lines(script):
        line = ARITHMETIC.sub(lambda match: _computed(match[1], variables), line)
        words = _words(line)
        match = ASSIGNMENT.match(line)
        if match and match[2].lstrip().startswith("("):
            variables[match[1]] = _expanded(_words(match[2].strip().strip("()")), variables)
        elif match and (len(words) == 1 or words[0] in DECLARING):  # before a command it is that one's environment
            variables[match[1]] = [" ".join(_expanded(_words(match[2].strip()), variables))]
        elif words:
            yield _expanded(words, variables)


def _logical_lines(script: str) -> Iterator[str]:
    """Lines with those that they go on in; an array's parentheses hold lines together as well."""
    gathered = ""
    for line in script.replace("\r\n", "\n").splitlines():
        if COMMENT.match(line):
            continue
        if line.rstrip().endswith("\\"):
            gathered += line.rstrip()[:-1] + " "
            continue
        gathered += line
        if re.match(r"^\s*\w+=\((?!\()", gathered) and gathered.count("(") > gathered.count(")"):
            gathered += " "
            continue
        yield gathered
        gathered = ""
    if gathered:
        yield gathered


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that never closes, as in the middle of a here-document
        words = line.split()
    words = [word for word in words if word not in ("$@", "\\")]
    return words[: next((i for i, word in enumerate(words) if REDIRECTION.match(word)), len(words))]


def _expanded(words: Sequence[str], variables: Mapping[str, list[str]]) -> list[str]:
    """Words with variables put in; one that is a whole array, or a variable that holds options, becomes several."""
    expanded: list[str] = []
    for word in words:
        alone = VARIABLE.fullmatch(word)
        held = variables.get(alone[1] or alone[3], []) if alone else []
        if len(held) > 1:
            expanded += held
        elif held and held[0].startswith("-"):
            expanded += shlex.split(held[0])
        else:
            expanded.append(_substituted(word, variables))
    return expanded


def _substituted(word: str, variables: Mapping[str, list[str]]) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        if name in variables:
            return " ".join(variables[name]).replace("$", HELD)
        return f"{HELD}{name}" if default is None else default.strip("\"'")

    for _ in range(MOST_SUBSTITUTIONS):
        before, word = word, VARIABLE.sub(value, word)
        if word == before:
            break
    return word.replace(HELD, "$")


def _computed(text: str, variables: Mapping[str, list[str]]) -> str:
    """The value of ``$((text))``, or that itself if it is not known."""
    named = re.sub(r"\$\{?([A-Za-z_]\w*)\}?", r"\1", text)
    written = re.sub(r"[A-Za-z_]\w*", lambda name: " ".join(variables.get(name[0], [name[0]])), named)
    try:
        return str(_number(ast.parse(written.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return f"$(({text}))".replace(" ", "")


def _number(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_number(left), _number(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
    raise ValueError("not arithmetic of whole numbers")
