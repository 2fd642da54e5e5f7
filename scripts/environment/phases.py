"""The phases of a set-up, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from environment.commands import Commands
from environment.first_import import import_vllm
from environment.flash_attn import install_flash_attn
from environment.locks import check_versions, read_lock
from environment.place import Device, SetupError
from environment.torch_build import LIBRARIES, Torch

WITHOUT_PACKAGES_LIST = ("torch", "openrlhf", "flash-attn")
"""Packages with steps of their own. OpenRLHF asks for a compiled flash-attn, so it comes after the others."""
NOT_COMPILED = r"/(tests?|torch/testing|transformers/models|anthropic|numba)/"
"""Large parts of packages of which a run imports little or nothing; Python compiles that little when it comes to it."""


@dataclass(frozen=True)
class Phase:
    """One step of the set-up."""

    name: str
    title: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Installer:
    """What the phases do."""

    commands: Commands
    torch: Torch

    @property
    def device(self) -> Device:
        """What the environment is for."""
        return self.torch.device

    def phases(self, *, dev: bool) -> list[Phase]:
        """The phases of a set-up, with or without the tools for tests and checks."""
        count = len(read_lock(self.commands.place, self.device))
        phases = [
            Phase("torch", "torch", self.torch.install),
            Phase("packages", f"{count} pinned packages", self.packages),
            Phase("flash-attn", "flash-attn", lambda: install_flash_attn(self.commands, self.device)),
            Phase("project", "this project", self.project),
            Phase("versions", "check of the versions", self.versions),
            Phase("bytecode", "bytecode", self.bytecode),
            Phase("vllm", "first import of vLLM", lambda: import_vllm(self.commands.place, self.device)),
        ]
        return [*phases, Phase("dev", "tools for tests and checks", self.dev_tools)] if dev else phases

    def packages(self) -> None:
        """Install the list. It is complete, so pip does not look at what the packages ask for."""
        pins = read_lock(self.commands.place, self.device)
        # DeepSpeed is built where it cannot see torch (PEP 517): torch 2.13 would make its set-up fail.
        self.commands.pip_install(
            "--no-deps",
            "--use-pep517",
            *(pin for name, pin in pins.items() if name not in WITHOUT_PACKAGES_LIST),
            env={"DS_BUILD_OPS": "0"},
        )
        self.commands.pip_install("--no-deps", pins["openrlhf"])

    def project(self) -> None:
        """Install this checkout, editable."""
        root = str(self.commands.place.root)
        self.commands.pip_install("--no-deps", "--no-build-isolation", "--editable", root)

    def versions(self) -> None:
        """Make sure that the environment has the pinned versions."""
        lists = (self.device, LIBRARIES) if self.torch.needs_libraries() else (self.device,)
        if wrong := check_versions(self.commands.place, *lists):
            raise SetupError("\n".join(wrong))

    def bytecode(self) -> None:
        """Compile what was installed, with all cores, so that the first start does not have to."""
        place = self.commands.place
        compileall = ("-m", "compileall", "-q", "-j", "0", "-x", NOT_COMPILED)
        self.commands.run((place.python, *compileall, place.site_packages), check=False)

    def dev_tools(self) -> None:
        """Install, and compile at once, what tests and checks need."""
        self.commands.pip_install("--compile", "--no-deps", *read_lock(self.commands.place, "dev").values())
