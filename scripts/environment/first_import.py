"""vLLM imported once in the new environment, so that what the system lacks is named now and not minutes into a run."""

from __future__ import annotations

import re
import subprocess

from environment.place import Device, Place, SetupError

PROGRAM = """
import torch
import vllm.v1.engine.core
from vllm.platforms import current_platform
current_platform.import_kernels()
"""

DEBIAN_PACKAGES = {
    "libnuma.so.1": "libnuma1",
    "libgomp.so.1": "libgomp1",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
}
MISSING = re.compile(r"([\w.+-]+\.so[.\d]*): cannot open shared object file")


def import_vllm(place: Place, device: Device) -> None:
    """Import vLLM and its kernels. Raises ``SetupError`` naming each missing library with its package, or the failure.

    Where CUDA's driver is not there yet, as while an image is built, its absence is no error.
    """
    result = subprocess.run((place.python, "-c", PROGRAM), capture_output=True, text=True, check=False, cwd=place.venv)
    output = result.stdout + result.stderr
    with place.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"\n$ {place.python} -c {PROGRAM!r}\n{output}\n")
    if missing := missing_libraries(output):
        raise SetupError(lacking(missing))
    if result.returncode and not (device == "cuda" and "libcuda.so" in output):
        end = "\n".join(output.rstrip().splitlines()[-6:])
        raise SetupError(f"vLLM cannot be imported in the new environment:\n{end}")


def missing_libraries(output: str) -> list[str]:
    """Shared libraries that the system does not have, in the order of the complaints. vLLM only warns of them."""
    return [name for name in dict.fromkeys(MISSING.findall(output)) if not name.startswith("libcuda.so")]


def lacking(libraries: list[str]) -> str:
    """What to do about missing libraries."""
    known = [DEBIAN_PACKAGES[name] for name in libraries if name in DEBIAN_PACKAGES]
    lines = [f"vLLM needs {', '.join(libraries)}, which this system does not have. Everything else is installed."]
    if known:
        lines.append(f"On Debian and Ubuntu: apt-get install {' '.join(known)}; then run the set-up again.")
    return "\n".join(lines)
