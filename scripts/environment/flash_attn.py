"""flash-attn: compiled for the card if that works, else its Python part, which OpenRLHF imports."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

from environment.commands import Commands, heartbeat
from environment.locks import read_lock
from environment.place import Device, SetupError

KNOWN_ARCHITECTURES = {8: "80", 9: "90", 10: "100", 12: "120"}
"""What flash-attn 2.8.3 can be compiled for, by the first number of a card's compute capability: code for 8.0 runs on 8.6."""

NOTHING_COMPILED = {"FLASH_ATTENTION_FORCE_BUILD": "TRUE", "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}


def install_flash_attn(commands: Commands, device: Device) -> None:
    """Install flash-attn in the form that this machine allows."""
    arguments = ("--no-deps", "--no-build-isolation", read_lock(commands.place, device)["flash-attn"])
    if device == "cuda":
        if _compile(commands, arguments):
            return
        print("flash-attn cannot be built here: attention will be PyTorch's own (sdpa) ... ", end="", flush=True)
    # pip must not keep this build: it would hand it out again where a compiled one is wanted.
    commands.pip_install("--no-cache-dir", *arguments, env=NOTHING_COMPILED)


def _compile(commands: Commands, arguments: tuple[str, ...]) -> bool:
    """Whether a compiled flash-attn has been installed."""
    wanted = architectures(_compute_capabilities())
    env = {"FLASH_ATTN_CUDA_ARCHS": ";".join(wanted)} if wanted else {}
    target = f"architecture {', '.join(wanted)}" if wanted else "every architecture, as no card was found"
    print(f"compiling for {target}, which takes up to an hour unless a wheel is found", end=" ... ", flush=True)
    try:
        with heartbeat("compiling flash-attn"):
            commands.pip_install(*arguments, env=env)
    except SetupError as error:
        print(f"\n    {str(error).splitlines()[-2] if len(str(error).splitlines()) > 1 else error}\n    ", end="")
        return False
    return True


def architectures(capabilities: Iterable[str]) -> list[str]:
    """The architectures to compile for, from compute capabilities such as ``8.6``; those unknown are left out."""
    majors = {int(number) for capability in capabilities if (number := capability.partition(".")[0].strip()).isdigit()}
    return [KNOWN_ARCHITECTURES[major] for major in sorted(majors & KNOWN_ARCHITECTURES.keys())]


def _compute_capabilities() -> list[str]:
    tool = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if tool is None:
        return []
    command = (tool, "--query-gpu=compute_cap", "--format=csv,noheader")
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.splitlines() if result.returncode == 0 else []
