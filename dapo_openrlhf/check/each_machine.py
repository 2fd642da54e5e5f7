"""Judges each machine of a run by a look at it, and says on which of them what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from dapo_openrlhf.backend.run.node_look import Look
from dapo_openrlhf.check.finding import Finding, passed
from dapo_openrlhf.check.subject import Subject

SHOWN = 4
"""Most machines that are named where the same was found on several."""


def each_machine(subject: Subject, judge: Callable[[Look], Iterator[Finding]], elsewhere: str) -> Iterator[Finding]:
    """The findings on all machines: failures and warnings with the machines' names, and what was found on the first where all
    is well. ``elsewhere`` is said where none can be looked at."""
    looks = [looked for looked in subject.looks() if not isinstance(looked.found, str)]
    if not looks:
        yield passed(elsewhere)
        return
    where: dict[Finding, list[str]] = {}
    for looked in looks:
        assert isinstance(looked.found, Look)
        for finding in judge(looked.found):
            where.setdefault(finding, []).append(looked.address)
    well = [(finding, names) for finding, names in where.items() if finding.level == "pass"]
    for finding, names in where.items():
        if finding.level != "pass":
            yield _on(finding, names)
    if well:
        first, names = well[0]
        yield _on(first, names + [name for _, others in well[1:] for name in others])


def _on(finding: Finding, names: list[str]) -> Finding:
    if names == [""]:
        return finding
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    nodes = "node" if len(names) == 1 else "nodes"
    return replace(finding, words=f"{nodes} {', '.join(names[:SHOWN])}{more}: {finding.words}")
