"""The versions of vLLM whose internals this project drives (standard library)."""

from __future__ import annotations

import re

OLDEST, FIRST_BEYOND = (0, 26), (0, 30)


def refusal(version: str) -> str | None:
    """Why a version is not used, with the remedy; None for one that is, and for a build without a release number."""
    release = re.match(r"(\d+)\.(\d+)", version)
    if release is None or OLDEST <= tuple(map(int, release.groups())) < FIRST_BEYOND:
        return None
    known = f"{_dotted(OLDEST)} to {_dotted((FIRST_BEYOND[0], FIRST_BEYOND[1] - 1))}"
    return (
        f"vLLM {version}: its engine core and its reload of weights are driven step by step, as they are in {known}; "
        "`make setup` installs the tested version"
    )


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
