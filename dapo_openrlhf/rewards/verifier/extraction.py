"""The final answer of a response: the last ``Answer: ...`` or ``\\boxed{...}`` outside of a thought, near the end."""

from __future__ import annotations

import re

TAIL = 2000
"""Characters at the end of a response in which the answer must stand."""

_TURN = re.compile(r"<\||\[/?INST\]|<start_of_turn>")
"""Marks that begin or end a message of a chat; text before them belongs to another message."""
_THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
)
_PROMPT_END = 400
"""Characters at the end of a prompt in which a thought may have been opened."""

_ANCHOR = re.compile(
    r"(?<![a-z])answer[ \t]{0,3}[*_}]{0,4}[ \t]{0,3}[:\uff1a]|\\(?:boxed|fbox)(?![a-zA-Z])", re.IGNORECASE
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_TOKEN = re.compile(r"\\[a-zA-Z]+|\d+(?:\.\d+)?|[^\s\\{}$]")
_CLOSING = re.compile(r"[\s}$.*)\]\\]*")
_AFTER = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?(?:answer|s|eos|final|response)>|<eos>|<pad>|<end_of_turn>", re.IGNORECASE
)
"""Tags and end tokens, which are not part of an answer."""
_MINERVA = "the final answer is"
_HOPE = "i hope it is correct"


def final_part(response: str, prompt: str = "") -> str:
    """The part of a response after its thoughts, at most its last 2,000 characters; empty if a thought is unfinished.

    A thought may be opened at the end of the prompt, as chat templates do. This searches for fixed text only, so the
    time is linear, and a megabyte takes less than a millisecond.
    """
    if not any(stem in response or stem in prompt[-_PROMPT_END:] for stem in ("think", "THINK", "thought")):
        return response[-TAIL:]
    start = 0
    for opening, closing in _THOUGHTS:
        closed = response.rfind(closing)
        if response.rfind(opening) > closed or (closed < 0 and _opens(prompt[-_PROMPT_END:], opening, closing)):
            return ""
        if closed >= 0:
            start = max(start, closed + len(closing))
    return response[max(start, len(response) - TAIL) :]


def _opens(end: str, opening: str, closing: str) -> bool:
    """Whether a prompt ends within a thought; a sentence that only mentions the tag does not open one."""
    opened = end.rfind(opening)
    if opened < 0 or end.rfind(closing) > opened:
        return False
    after = end[opened + len(opening) :]
    before = end[:opened].rstrip(" \t")
    return not after.strip() or ((not before or before[-1] in "\n>]") and not _TURN.search(after))


def extract_answer(response: str, prompt: str = "") -> str | None:
    """The final answer that a response to ``prompt`` gives, or None.

    The last attempt counts: with an empty ``Answer:`` or an unclosed box after an earlier answer there is no answer.
    """
    tail = final_part(response, prompt)
    last = None
    for last in _ANCHOR.finditer(tail):  # noqa: B007 - the last one is what is wanted
        pass
    if last is None:
        return None
    answer = _boxed(tail, last.end()) if last[0].startswith("\\") else _line(tail[last.end() :])
    return (answer or "").strip() or None


def _line(text: str) -> str:
    """The answer after ``Answer:``: the rest of the line, the next line that is not empty, or a displayed formula."""
    text = text.lstrip()
    text = text[min(len(text) - len(text.lstrip("*_}")), 4) :].lstrip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        end = text.find(closing, 2) if text.startswith(opening) else -1
        if end >= 0:
            return text[: end + 2]
    line = _AFTER.sub(" ", text.partition("\n")[0])
    unmatched = _unmatched_brace(line, 0)
    if unmatched is not None and _CLOSING.fullmatch(line, unmatched):
        line = line[:unmatched]  # 7 for the 7} of \text{Answer: 7}
    return _of_minerva(line.strip())


def _of_minerva(line: str) -> str:
    """The ``7`` of ``The final answer is 7. I hope it is correct.``"""
    low = line.lower()
    hope = low.rstrip(" .").removesuffix(_HOPE)
    if low.startswith(_MINERVA) and len(hope) < len(low.rstrip(" .")):
        return line[len(_MINERVA) : len(hope)].lstrip(": ").rstrip(" .")
    return line


def _boxed(text: str, start: int) -> str | None:
    r"""The content of the box whose command ends at ``start``: that of braces, or one token as in ``\boxed 2``."""
    space = len(text) - start - len(text[start:].lstrip(" \t"))
    start += space
    if text[start : start + 1] == "{":
        end = _unmatched_brace(text, start + 1)
        return None if end is None else text[start + 1 : end]
    token = _TOKEN.match(text, start)
    return token[0] if (token and token[0].isalnum()) or (token and token[0][0].isdigit()) else None


def _unmatched_brace(text: str, start: int) -> int | None:
    """Position, from ``start`` on, of the first closing brace without an opening one; None if there is none."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return match.start()
    return None
