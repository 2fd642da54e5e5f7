"""All checks, in the order of the table; another one is a file of its own, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dapo_openrlhf.check import (
    batch,
    configuration,
    data,
    disk,
    limits,
    memory,
    model,
    nodes,
    placement,
    ports,
    reward,
    shared_memory,
    tokenizer,
    versions,
)
from dapo_openrlhf.check.finding import Finding, failed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.errors import ConfigError

Check = Callable[[Subject], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {
    "configuration": configuration.check,
    "versions": versions.check,
    "model": model.check,
    "tokenizer": tokenizer.check,
    "data": data.check,
    "reward": reward.check,
    "batch": batch.check,
    "placement": placement.check,
    "nodes": nodes.check,
    "memory": memory.check,
    "disk": disk.check,
    "limits": limits.check,
    "shared memory": shared_memory.check,
    "ports": ports.check,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The findings of one check."""

    name: str
    findings: tuple[Finding, ...]


def run_checks(subject: Subject) -> Iterator[Row]:
    """Run all checks at once, and yield their rows in the order of the table, each as soon as it can be."""
    told: dict[str, str] = {}
    with ThreadPoolExecutor(len(CHECKS)) as threads:
        for name, found in zip(
            CHECKS, threads.map(lambda check: _findings(check, subject), CHECKS.values()), strict=True
        ):
            yield Row(name=name, findings=tuple(_once(finding, name, told) for finding in found))


def _findings(check: Check, subject: Subject) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check(subject):
            found.append(finding)
    except (ConfigError, OSError) as error:  # of files that may not be read, for example
        found.append(failed(str(error)))
    return found


def _once(finding: Finding, name: str, told: dict[str, str]) -> Finding:
    """Refer to the row that told of the same failure first."""
    if finding.level != "fail":
        return finding
    first = told.setdefault(finding.words, name)
    return finding if first == name else warned(f"not checked, because of what {first} says")
