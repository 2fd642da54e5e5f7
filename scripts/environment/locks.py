"""The lists of pinned packages under ``scripts/lock``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from environment.place import Place


def read_lock(place: Place, name: str) -> dict[str, str]:
    """The pinned requirements of one list, by package name."""
    text = (place.locks / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {normalise(re.split(r"[=\[]", line)[0]): line for line in lines if line}


def normalise(name: str) -> str:
    """The one spelling of a package's name among those that mean the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hash_contents(place: Place) -> str:
    """Hash everything that decides what the environment contains."""
    digest = hashlib.sha256()
    scripts = (place.root / "scripts" / "setup_env.py", *sorted(Path(__file__).parent.glob("*.py")))
    for path in (*sorted(place.locks.glob("*.txt")), place.root / "setup.cfg", *scripts):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_versions(place: Place, *lists: str) -> list[str]:
    """What of the lists the environment lacks or has in another version, a sentence for each."""
    folders = (folder.stem.partition("-") for folder in place.site_packages.glob("*.dist-info"))
    found = {normalise(name): version.partition("+")[0] for name, _, version in folders}
    pins = {name: pin for each in lists for name, pin in read_lock(place, each).items()}
    return [
        f"The environment should have {pin}, but has {found.get(name, 'none')}."
        for name, pin in pins.items()
        if found.get(name) != pin.partition("==")[2]
    ]
