"""Whether every machine of the cluster sees what a run reads and writes, with the same packages."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.backend.run.node_look import Look, asked_of, lacking, look
from dapo_openrlhf.check.finding import Finding, failed, passed
from dapo_openrlhf.check.subject import Looked, Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for each machine, by its address, that lacks a folder or file, or has other packages than this one."""
    looks = [looked for looked in subject.looks() if looked.address]
    if len(looks) < 2:
        yield passed("one machine" if subject.machines().here else "they are looked at where the run runs")
        return
    asked = asked_of(subject.config, subject.folder)
    here = look(asked)
    judged = [(looked.address, [*_wrong(looked, here, subject)]) for looked in looks]
    for address, problems in judged:
        for words in problems:
            yield failed(f"node {address}: {words}")
    if fine := [address for address, problems in judged if not problems]:
        names = ", ".join([*asked.paths, f"run.dir {asked.folder}"])
        yield passed(f"nodes {', '.join(fine)}: {names}, and the same packages as here")


def _wrong(looked: Looked, here: Look, subject: Subject) -> Iterator[str]:
    yield from lacking(looked.found, asked_of(subject.config, subject.folder))
    if isinstance(looked.found, str):
        return
    there = looked.found.versions
    other = [
        f"{name} {there[name] or 'is missing'} (here {mine or 'none'})"
        for name, mine in here.versions.items()
        if there[name] != mine
    ]
    if other:
        yield f"{', '.join(other)}; install the same there as here"
