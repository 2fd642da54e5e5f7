"""The commands of a shell script, without running any of it (standard library)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import dropwhile

from dapo_openrlhf.convert.shell_words import BLANK, Reader, Separator, Variables, Word

DECLARING = ("export", "local", "declare", "typeset", "readonly")
SAYING = ("echo", "printf")
SCRIPT_FOLLOWS = re.compile(r"-[a-z]*c")
"""The option of a shell whose value is a script, as of ``bash -lc``."""
SCRIPT_IN = "--wrap="
"""The option of sbatch that holds one."""


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of every command of a script, with its own variables put in, also of those in ``bash -c '...'``.

    Lines that end in a backslash go on in the next one, also over lines of comment, and lines that begin with an option
    belong to the command before them, where a shell would take them for a command. Variables that the script does not set
    stay in the words as they are written; ``"$@"`` and redirections are left out.
    """
    held: list[str] = []
    for words in _commands(script.removeprefix("\ufeff").replace("\r\n", "\n"), {}):
        if held and words[0].startswith("--"):
            held += words
            continue
        if held:
            yield held
        held = words
    if held:
        yield held


def _commands(script: str, variables: Variables) -> Iterator[list[str]]:
    reader, words = Reader(script, variables), list[Word]()
    while True:
        token = reader.next()
        if isinstance(token, Word):
            words.append(token)
            if token.assigns is not None and _assigns(words):  # those behind it may name it
                variables[token.assigns] = token.values
            continue
        if not _assigns(words):
            values = [value for word in words for value in word.written or word.values]
            yield from _with_scripts_in([value.replace(BLANK, " ") for value in values], variables)
        words.clear()
        yield from _of_documents(token, variables)
        if token.last:
            return


def _assigns(words: Sequence[Word]) -> bool:
    """Whether a command only sets variables; before another command they are that one's environment."""
    rest = list(words)
    if rest and rest[0].values and rest[0].assigns is None and rest[0].values[0] in DECLARING:
        rest = list(dropwhile(lambda word: word.assigns is None, rest))
    return all(word.assigns is not None for word in rest)


def _of_documents(token: Separator, variables: Variables) -> Iterator[list[str]]:
    """The commands in here-documents, which are often given to a shell."""
    for document in token.documents:
        yield from _commands(document, variables)


def _with_scripts_in(words: list[str], variables: Variables) -> Iterator[list[str]]:
    if not words or words[0] in SAYING:
        return
    yield words
    for before, word in zip(["", *words], words, strict=False):
        if (SCRIPT_FOLLOWS.fullmatch(before) or words[0] in ("eval", "ssh")) and " " in word:
            yield from _commands(word, variables)
        elif word.startswith(SCRIPT_IN):
            yield from _commands(word.removeprefix(SCRIPT_IN), variables)
