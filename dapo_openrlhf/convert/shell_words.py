"""The words of a shell script with its own variables put in, one after the other (standard library).

Quotes, continued lines, comments and redirections are read as bash reads them. Nothing is run: ``$(...)``, and variables that
the script does not set, stay as they are written.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Variables = dict[str, list[str]]
"""A variable's values: one, or those of an array."""

NAME = re.compile(r"[A-Za-z_]\w*")
ASSIGNED = re.compile(r"([A-Za-z_]\w*)(\+?)=")
EXPANSION = re.compile(r"([A-Za-z_]\w*)(?:\[[@*]\])?(?::?[-=](.*))?", re.DOTALL)
SEPARATOR = re.compile(r"\|\||&&|;;|[;&|()\n]")
REDIRECTION = re.compile(r"\d*(?:&>>?|<<<|<<-?|>>|[<>]&|>\||[<>])")
CONTINUED = re.compile(r"\\[ \t]*\n(?:[ \t]*#[^\n]*\n)*")
"""A backslash at the end of a line, also before lines of comment, which a shell would take for the end of the command."""
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
BLANK = "\0"
"""Stands in values for a blank at which a word is not to be divided."""
OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word as it is written, which may become several, or none."""

    values: list[str]
    assigns: str | None = None
    """Name of the variable that it sets where a command may begin: to ``values``."""
    written: list[str] = field(default_factory=list)
    """What it is anywhere else, if it ``assigns``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Separator:
    """What ends a command: ``;``, ``&&``, a line's end, the end of the script."""

    documents: list[str]
    """The here-documents that the line began, whose lines follow it."""
    last: bool


class Reader:
    """Reads one script. ``variables`` are those that it has set so far, which its caller keeps."""

    def __init__(self, text: str, variables: Variables) -> None:
        self._text = text
        self._at = 0
        self._variables = variables
        self._documents: list[tuple[str, bool]] = []

    def next(self) -> Word | Separator:
        """The next word, or the end of a command."""
        while True:
            self._skip_blanks()
            if self._at >= len(self._text):
                return Separator(documents=[], last=True)
            if redirection := REDIRECTION.match(self._text, self._at):
                self._redirected(redirection)
            elif separator := SEPARATOR.match(self._text, self._at):
                self._at = separator.end()
                return Separator(documents=self._bodies() if separator[0] == "\n" else [], last=False)
            else:
                return self._word()

    def _skip_blanks(self) -> None:
        while self._at < len(self._text):
            if continued := CONTINUED.match(self._text, self._at):
                self._at = continued.end()
            elif self._text[self._at] in " \t":
                self._at += 1
            elif self._text[self._at] == "#":
                self._at = self._until("\n", self._at)
            else:
                return

    def _until(self, end: str, start: int) -> int:
        found = self._text.find(end, start)
        return len(self._text) if found < 0 else found

    def _redirected(self, sign: re.Match[str]) -> None:
        self._at = sign.end()
        self._skip_blanks()
        if self._at >= len(self._text) or SEPARATOR.match(self._text, self._at):
            return
        target = self._word()
        if sign[0].endswith(("<<", "<<-")):
            self._documents.append(("".join(target.values), sign[0].endswith("-")))

    def _bodies(self) -> list[str]:
        """The lines of the here-documents that begin here."""
        bodies = []
        for end, tabs in self._documents:
            lines = []
            while self._at < len(self._text):
                stop = self._until("\n", self._at)
                line, self._at = self._text[self._at : stop], stop + 1
                if (line.lstrip("\t") if tabs else line) == end:
                    break
                lines.append(line)
            bodies.append("\n".join(lines) + "\n")
        self._documents.clear()
        return bodies

    def _word(self) -> Word:
        if assigned := ASSIGNED.match(self._text, self._at):
            return self._assignment(assigned)
        return Word(values=self._values(divide=True))

    def _assignment(self, assigned: re.Match[str]) -> Word:
        self._at = assigned.end()
        name, before = assigned[1], self._variables.get(assigned[1], []) if assigned[2] else []
        if self._text.startswith("(", self._at):
            values = self._array()
            return Word(values=[*before, *values], assigns=name, written=[f"{assigned[0]}({' '.join(values)})"])
        value = "".join(self._values(divide=False))
        return Word(values=["".join([*before, value])], assigns=name, written=[assigned[0] + value])

    def _array(self) -> list[str]:
        self._at += 1
        values: list[str] = []
        while True:
            self._skip_blanks()
            if self._at >= len(self._text):
                return values
            if self._text[self._at] in ")\n":
                self._at += 1
                if self._text[self._at - 1] == ")":
                    return values
            elif separator := SEPARATOR.match(self._text, self._at):
                self._at = separator.end()
            else:
                values += self._values(divide=True)

    def _values(self, *, divide: bool) -> list[str]:
        """The values of the word that begins here; ``divide``: variables outside quotes become several words."""
        parts, values, is_one = "", [], False
        while self._at < len(self._text):
            sign = self._text[self._at]
            if CONTINUED.match(self._text, self._at) or sign in " \t<>" or SEPARATOR.match(self._text, self._at):
                break
            found, quoted = self._part(sign)
            pieces = found
            if not quoted and divide:
                pieces = [piece for value in found for piece in value.split()]
            is_one = is_one or (quoted and found != []) or pieces != []
            for number, piece in enumerate(pieces):
                if number:
                    values.append(parts)
                    parts = ""
                parts += piece
        if is_one:
            values.append(parts)
        return values

    def _part(self, sign: str) -> tuple[list[str], bool]:
        """A part of a word, and whether it stands in quotes or for itself."""
        if sign == "'" and (end := self._text.find("'", self._at + 1)) > 0:
            text, self._at = self._text[self._at + 1 : end], end + 1
            return [text], True
        if sign == '"' and self._closes():
            self._at += 1
            return self._quoted(), True
        if sign == "\\":
            self._at += 2
            return [self._text[self._at - 1 : self._at]], True
        if sign in "$`":
            return self._dollar()
        self._at += 1
        return [sign], True

    def _closes(self) -> bool:
        return re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL).match(self._text, self._at) is not None

    def _quoted(self) -> list[str]:
        """What stands between double quotes; several for an array in them alone."""
        values, several = "", None
        while self._at < len(self._text) and (sign := self._text[self._at]) != '"':
            if sign == "\\" and (after := self._text[self._at + 1 : self._at + 2]) in '$`"\\\n':
                self._at += 2
                values += "" if after == "\n" else after
            elif sign in "$`":
                found, _ = self._dollar()
                several = found if len(found) != 1 and not values else None
                values += " ".join(found)
            else:
                self._at += 1
                values += sign
        self._at += 1
        return several if several is not None and values == " ".join(several) else [values]

    def _dollar(self) -> tuple[list[str], bool]:
        """What begins with a dollar sign or a backquote, and whether it is not to be divided."""
        text, start = self._text, self._at
        if text[start] == "`":
            self._at = min(self._until("`", start + 1) + 1, len(text))
            inner = text[start + 1 : self._at - 1].strip()
            return ([] if inner.startswith("#") else [_kept(f"$({inner})")]), False
        if text.startswith("$'", start):
            return [self._with_escapes()], True
        for opening, closing in (("$((", "))"), ("$(", ")"), ("${", "}")):
            if text.startswith(opening, start):
                self._at = _closing(text, start + 1)
                written = text[start : self._at]
                if not written.endswith(closing):
                    return [_kept(written)], False
                inner = written[len(opening) : -len(closing)]
                match opening:
                    case "$((":
                        return [computed(inner, self._variables)], False
                    case "$(":
                        return [_kept(written)], False
                return self._expanded(inner, written)
        if named := NAME.match(text, start + 1):
            self._at = named.end()
            return self._expanded(named[0], text[start : self._at])
        self._at = start + 2
        return ([], False) if text[start + 1 : start + 2] in ("@", "*") else ([text[start : self._at]], True)

    def _with_escapes(self) -> str:
        end = re.compile(r"(?:[^'\\]|\\.)*", re.DOTALL).match(self._text, self._at + 2)
        assert end is not None, "which matches the empty text"
        self._at = end.end() + 1
        return re.sub(r"\\(.)", lambda escape: ESCAPES.get(escape[1], escape[1]), end[0], flags=re.DOTALL)

    def _expanded(self, inner: str, written: str) -> tuple[list[str], bool]:
        form = EXPANSION.fullmatch(inner)
        if form is not None and form[1] in self._variables:
            return self._variables[form[1]], False
        if form is None or form[2] is None:
            return ([] if inner in ("@", "*") else [f"${inner}" if NAME.fullmatch(inner) else _kept(written)]), False
        default = Reader(form[2], self._variables)
        values: list[str] = []
        while isinstance(word := default.next(), Word) or not word.last:
            values += (word.written or word.values) if isinstance(word, Word) else []
        return [" ".join(values)], False


def _kept(written: str) -> str:
    """What stays as it is written, in one word."""
    return re.sub(r"\s", BLANK, written)


def _closing(text: str, start: int) -> int:
    """Where what is opened at ``start`` ends; the end of its line if it never does."""
    opened, pairs = 0, {"(": ")", "{": "}"}
    opening = text[start]
    for at in range(start, len(text)):
        opened += (text[at] == opening) - (text[at] == pairs[opening])
        if not opened:
            return at + 1
    return min(found for found in (text.find("\n", start), len(text)) if found >= 0)


def computed(text: str, variables: Mapping[str, list[str]]) -> str:
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
