"""Packages that a run needs, against the versions that this project is tested with."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import dapo_openrlhf
from dapo_openrlhf.backend.run.needs import ALIASES, check_vllm, installed, missing_liger
from dapo_openrlhf.backend.run.node_look import PACKAGES
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.errors import ConfigError

LOCKS = Path(dapo_openrlhf.__file__).parent.parent / "scripts" / "lock"
"""Lists of pinned packages; only a checkout has them."""


def pins(kind: str) -> Mapping[str, str]:
    """Versions by package that ``make setup`` installs for a kind of device; empty where the lists are not there."""
    try:
        lines = (LOCKS / f"{kind}.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = (re.match(r"([\w.-]+)==([^\s;#]+)", line) for line in lines)
    versions = {match[1].lower(): match[2].partition("+")[0] for match in found if match}
    return versions | {name: versions[alias] for name, alias in ALIASES.items() if alias in versions}


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for missing packages, unless the machines are only named; warn about other versions than the pinned ones."""
    assumed = subject.machines().assumed
    expected = pins(subject.config.device)
    found = {name: installed(name) for name in PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        words = f"not installed here: {', '.join(missing)}"
        if assumed:
            yield warned(words, "they are needed where the run is to run")
        else:
            yield failed(words, "make setup installs all of them")
    if (vllm := found["vllm"]) is not None and not assumed:
        try:
            check_vllm(subject.config, vllm, training=True)
        except ConfigError as error:
            yield failed(str(error))
    if (lacking := missing_liger(subject.config)) is not None:
        yield warned(lacking) if assumed else failed(lacking)
    other = {
        name: f"{name} {version} (tested with {expected[name]})"
        for name, version in found.items()
        if version is not None and name in expected and version != expected[name]
    }
    if other and not assumed:
        yield warned(", ".join(other.values()), "make setup installs the tested ones")
    there = [f"{name} {version}" for name, version in found.items() if version is not None and name not in other]
    yield passed(", ".join([f"Python {platform.python_version()}", *there]))
