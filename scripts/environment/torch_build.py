"""Which build of torch the environment gets.

Plain package indices carry one build for Linux on x86-64, for CUDA. It works on a CPU as well, with the libraries that it
links and without triton, which would double the time that vLLM and DeepSpeed need to start.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from environment.commands import Commands
from environment.disk import check_room
from environment.locks import read_lock
from environment.place import PYTHON_VERSION, Device, SetupError

BUILD_TOOLS = ("setuptools", "wheel")
LIBRARIES = "torch_cuda_on_cpu"
"""The list of what a CUDA build of torch links."""
ONE_TRY = ("--retries", "0", "--timeout", "10")

NEEDS_CUDA = re.compile(r"(nvidia|cuda)-", re.IGNORECASE)

COST = """\
pip's package index serves torch {version} for CUDA. It works on a CPU too, but costs 2.3 GB of download and 5.7 GB
    on the disk instead of 2.9. To have a CPU build, stop this and name an index that carries PyTorch's CPU builds:
    `make setup TORCH_INDEX=URL` asks it for torch alone. Going on ... """
NO_CUDA = """\
pip served torch {version}, which is built for a CPU, and this set-up is for CUDA. Take the index or folder with CPU
builds out of your pip configuration (`pip config list` and `env | grep PIP_` show it), or name one with builds for CUDA and
Python {python}: `make setup DEVICE=cuda TORCH_INDEX=URL`. For a machine without a GPU, choose `make setup DEVICE=cpu`."""


@dataclass(frozen=True)
class Torch:
    """Installs torch, before anything else can pull in another one."""

    commands: Commands
    device: Device
    index: str | None = None
    """An index that is asked for torch alone, before those of pip's own configuration; None to use only these."""

    def install(self) -> None:
        """Install the build tools and torch. Raises ``SetupError`` for a CPU build where CUDA is wanted."""
        pins = read_lock(self.commands.place, self.device)
        self.commands.pip_install("--no-deps", *(pins[name] for name in BUILD_TOOLS))
        if not (self.index and self._from_index(pins["torch"])):
            self._from_configuration(pins["torch"])
        found = self.version()
        if self.device == "cuda" and not found["cuda"]:
            self._uninstall()
            raise SetupError(NO_CUDA.format(version=found["__version__"], python=PYTHON_VERSION))
        if self.device == "cpu" and found["cuda"]:
            self.commands.pip_install("--no-deps", *read_lock(self.commands.place, LIBRARIES).values())

    def version(self) -> dict[str, Any]:
        """What torch itself says of its version and of what it was built for, without importing it."""
        return runpy.run_path(str(self.commands.place.site_packages / "torch" / "version.py"))

    def needs_libraries(self) -> bool:
        """Whether this is a CUDA build on a CPU."""
        return self.device == "cpu" and bool(self.version()["cuda"])

    def _uninstall(self) -> None:
        self.commands.run((self.commands.place.python, "-m", "pip", "uninstall", "--yes", "torch"))

    def _from_index(self, pin: str) -> bool:
        """Whether the index named for torch has served it."""
        try:
            self.commands.pip_install("--no-deps", *ONE_TRY, "--index-url", str(self.index), pin)
        except SetupError as error:
            print(f"\n    {self.index} did not serve {pin}:", *str(error).splitlines()[:4], sep="\n    ")
            print("    Asking pip's own configuration ... ", end="", flush=True)
            return False
        return True

    def _from_configuration(self, pin: str) -> None:
        build = self._offered(pin)
        if self.device == "cuda":
            if not is_for_cuda(build):
                raise SetupError(NO_CUDA.format(version=build.get("version"), python=PYTHON_VERSION))
        elif is_for_cuda(build):
            check_room(self.commands.place, "cuda build on a cpu")
            print(COST.format(version=build.get("version")), end="", flush=True)
        self.commands.pip_install("--no-deps", pin)

    def _offered(self, pin: str) -> Mapping[str, Any]:
        """The metadata of the torch that pip would install; most indices serve them without the package."""
        report = self.commands.place.venv / "torch.json"
        self.commands.pip_install(
            "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--report", str(report), pin
        )
        (item,) = json.loads(report.read_text(encoding="utf-8"))["install"]
        report.unlink()
        metadata: Mapping[str, Any] = item["metadata"]
        return metadata


def is_for_cuda(metadata: Mapping[str, Any]) -> bool:
    """Whether a build of torch asks for CUDA's libraries."""
    return any(NEEDS_CUDA.match(requirement) for requirement in metadata.get("requires_dist", ()))
