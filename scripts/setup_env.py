"""Make the project's environment, `.venv`, or bring it up to date; instant when nothing has changed.

    python3 scripts/setup_env.py [--device cpu|cuda] [--dev]

This is the one place that decides between the CPU and the CUDA packages: CUDA where an NVIDIA driver is visible, CPU
elsewhere, unless `--device` says otherwise. The choice is remembered until `.venv` is removed.

Packages come through the pip configuration of whoever runs this. The work is cut into phases that are recorded as they
end, so an interrupted set-up goes on where it stopped. What pip prints is in `.venv/setup.log`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda"]

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "scripts" / "lock"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE_PACKAGES = VENV / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
LOG = VENV / "setup.log"
COMPLETE = VENV / ".complete"
PROGRESS = VENV / ".progress"

SUPPORTED_PYTHONS = ("3.11", "3.12")
DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/nvidia-smi")
BUILD_TOOLS = ("setuptools", "wheel")
WITHOUT_REQUIREMENTS = ("openrlhf", "flash-attn")
"""Packages which are never installed with what they ask for: OpenRLHF asks for a compiled flash-attn."""
NOT_COMPILED = r"/(tests?|torch/testing|transformers/models|anthropic|numba)/"
"""Large parts of packages of which a run imports little or nothing; Python compiles that little when it comes to it."""

CUDA_BUILD_ON_CPU = """\
pip's package index served torch {version}, which is built for a GPU, and this set-up is for a CPU.
Add an index that carries PyTorch's CPU builds for Python {python} to your own pip configuration (`extra-index-url` in
pip.conf, or the environment variable PIP_EXTRA_INDEX_URL), then run this again. For a GPU, choose `--device cuda`."""


class SetupError(Exception):
    """The set-up cannot go on; the message is for the user."""


@dataclass
class Progress:
    """What `.venv` was made for and which phases it has behind it."""

    base: list[str]
    """Device, Python version and place. A `.venv` with another base is removed."""
    contents: str
    """Hash of the lists of packages, of setup.cfg and of this script. With other contents every phase runs again."""
    done: list[str] = field(default_factory=list)

    @classmethod
    def load(cls) -> Progress | None:
        """Read what the last set-up left behind."""
        for path in (COMPLETE, PROGRESS):
            try:
                return cls(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError):
                continue
        return None

    @property
    def device(self) -> str:
        """The device this environment was made for."""
        return self.base[0]

    def save(self) -> None:
        """Record the phases done so far; the environment is not complete yet."""
        PROGRESS.write_text(json.dumps(asdict(self)))
        COMPLETE.unlink(missing_ok=True)

    def finish(self) -> None:
        """Record that the environment is complete."""
        self.save()
        PROGRESS.replace(COMPLETE)


@dataclass(frozen=True)
class Phase:
    """One step of the set-up."""

    name: str
    title: str
    run: Callable[[], None]


# What to install -----------------------------------------------------------------------------------------------------


def read_lock(name: str) -> dict[str, str]:
    """The pinned requirements of one list, by package name."""
    lines = (line.partition("#")[0].strip() for line in (LOCKS / f"{name}.txt").read_text().splitlines())
    return {normalise(re.split(r"[=\[]", line)[0]): line for line in lines if line}


def normalise(name: str) -> str:
    """The one spelling of a package's name among those that mean the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hash_contents() -> str:
    """Hash everything that decides what the environment contains."""
    digest = hashlib.sha256()
    for path in (*sorted(LOCKS.glob("*.txt")), ROOT / "setup.cfg", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def detect_device() -> Device:
    """CUDA where an NVIDIA driver is visible."""
    return "cuda" if any(Path(path).exists() for path in DRIVER_FILES) else "cpu"


# Phases --------------------------------------------------------------------------------------------------------------


def run_logged(command: Sequence[str | Path], *, env: dict[str, str] | None = None, check: bool = True) -> None:
    """Run a command with its output in the log."""
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        # The child keeps the lock: should this process be killed, the next set-up waits for the child to end.
        result = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | (env or {}), pass_fds=held_locks
        )
    if result.returncode < 0 or (check and result.returncode):
        raise SetupError(f"{log_tail()}\nThe whole output is in {LOG.relative_to(ROOT)}.")


def pip_install(*arguments: str, env: dict[str, str] | None = None) -> None:
    """Let the environment's pip install something."""
    options = ("--no-compile", "--no-input", "--progress-bar=off", "--disable-pip-version-check")
    run_logged((PYTHON, "-m", "pip", "install", *options, *arguments), env=env)


def log_tail(lines: int = 20) -> str:
    """The end of the log without pip's warnings."""
    with LOG.open(errors="replace") as log:
        return "".join(deque((line for line in log if not line.startswith("WARNING:")), maxlen=lines)).rstrip()


def install_torch(device: Device) -> None:
    """Install torch and the build tools, before anything else can pull in another torch."""
    pins = read_lock(device)
    dependencies = ("--no-deps",) if device == "cpu" else ()
    pip_install(*dependencies, pins["torch"], *(pins[name] for name in BUILD_TOOLS))
    version = runpy.run_path(str(SITE_PACKAGES / "torch" / "version.py"))
    if device == "cpu" and version["cuda"]:
        run_logged((PYTHON, "-m", "pip", "uninstall", "--yes", "torch"))
        raise SetupError(CUDA_BUILD_ON_CPU.format(version=version["__version__"], python=PYTHON_VERSION))


def install_packages(device: Device) -> None:
    """Install the list. The CPU's is complete; with CUDA pip adds what it requires."""
    pins = read_lock(device)
    dependencies = ("--no-deps",) if device == "cpu" else ()
    # DeepSpeed is built where it cannot see torch (PEP 517): torch 2.13 would make its set-up fail.
    pip_install(
        *dependencies,
        "--use-pep517",
        *(pin for name, pin in pins.items() if name not in WITHOUT_REQUIREMENTS),
        env={"DS_BUILD_OPS": "0"},
    )
    pip_install("--no-deps", pins["openrlhf"])


def install_flash_attn(device: Device) -> None:
    """Install flash-attn: compiled for CUDA if that works, else its Python part, which OpenRLHF imports."""
    arguments = ("--no-deps", "--no-build-isolation", read_lock(device)["flash-attn"])
    if device == "cuda":
        try:
            return pip_install(*arguments)
        except SetupError:
            print(
                "flash-attn cannot be built here: attention will be PyTorch's own (sdpa) ... ",
                end="",
                flush=True,
            )
    # pip must not keep this build: it would hand it out again where a compiled one is wanted.
    skip_compiler = {"FLASH_ATTENTION_FORCE_BUILD": "TRUE", "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
    pip_install("--no-cache-dir", *arguments, env=skip_compiler)


def install_project() -> None:
    """Install this checkout, editable."""
    pip_install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def install_dev_tools() -> None:
    """Install, and compile at once, what tests and checks need."""
    pip_install("--compile", "--no-deps", *read_lock("dev").values())


def compile_bytecode() -> None:
    """Compile what was installed, with all cores, so that the first start does not have to."""
    run_logged((PYTHON, "-m", "compileall", "-q", "-j", "0", "-x", NOT_COMPILED, SITE_PACKAGES), check=False)


def check_versions(device: Device) -> None:
    """Make sure that the environment has the pinned versions."""
    folders = (folder.stem.partition("-") for folder in SITE_PACKAGES.glob("*.dist-info"))
    found = {normalise(name): version.partition("+")[0] for name, _, version in folders}
    for name, pin in read_lock(device).items():
        if found.get(name) != pin.partition("==")[2]:
            raise SetupError(f"The environment should have {pin}, but has {found.get(name, 'none')}.")


def plan(device: Device, *, dev: bool) -> list[Phase]:
    """The phases of a set-up, in order."""
    phases = [
        Phase("torch", "torch", lambda: install_torch(device)),
        Phase("packages", f"{len(read_lock(device))} pinned packages", lambda: install_packages(device)),
        Phase("flash-attn", "flash-attn", lambda: install_flash_attn(device)),
        Phase("project", "this project", install_project),
        Phase("versions", "check of the versions", lambda: check_versions(device)),
        Phase("bytecode", "bytecode", compile_bytecode),
    ]
    return [*phases, Phase("dev", "tools for tests and checks", install_dev_tools)] if dev else phases


# The set-up ----------------------------------------------------------------------------------------------------------

held_locks: list[int] = []


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other set-up of this checkout is at work."""
    with Path(__file__).open() as script:
        try:
            fcntl.flock(script, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up, or what an interrupted one left running, to end", flush=True)
            fcntl.flock(script, fcntl.LOCK_EX)
        held_locks[:] = [script.fileno()]
        yield
        held_locks.clear()


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Print a phase and how long it took on one line."""
    print(f"  {title} ... ", end="", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print("stopped", flush=True)
        raise
    print(f"{time.monotonic() - started:.1f} s", flush=True)


def venv_works() -> bool:
    """Whether there is a `.venv` with a working pip."""
    command = (PYTHON, "-m", "pip", "--version")
    return PYTHON.exists() and subprocess.run(command, capture_output=True).returncode == 0


def make_venv() -> None:
    """Make an empty `.venv` in place of what is there, from the interpreter beneath a virtual environment."""
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    run_logged((getattr(sys, "_base_executable", sys.executable), "-m", "venv", VENV))


def discard_half_installed() -> None:
    """Remove the traces of packages whose installation was interrupted: pip would take them for installed."""
    for entry in SITE_PACKAGES.iterdir():
        half_installed = entry.suffix == ".dist-info" and not (entry / "RECORD").exists()
        if half_installed or entry.name.startswith("~"):
            shutil.rmtree(entry, ignore_errors=True)


def prepare(target: Progress) -> Progress:
    """Have a `.venv` of the wanted base, kept from the last set-up or new; return what it has behind it."""
    last = Progress.load()
    if last and last.base == target.base and venv_works():
        discard_half_installed()
        return last if last.contents == target.contents else target
    with timed("virtual environment"):
        make_venv()
        target.save()
    return target


def set_up(device: Device, *, dev: bool) -> None:
    """Run the phases that `.venv` does not have behind it yet."""
    target = Progress(base=[device, PYTHON_VERSION, str(ROOT)], contents=hash_contents())
    phases = plan(device, dev=dev)
    if is_complete(target, phases):
        return
    print(f"setting up .venv for {device}, Python {PYTHON_VERSION}", flush=True)
    started = time.monotonic()
    progress = prepare(target)
    for phase in phases:
        if phase.name not in progress.done:
            with timed(phase.title):
                phase.run()
            progress.done.append(phase.name)
            progress.save()
    progress.finish()
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)


def is_complete(target: Progress, phases: Sequence[Phase]) -> bool:
    """Whether nothing is left to do."""
    last = Progress.load()
    return (
        last is not None
        and COMPLETE.exists()
        and PYTHON.exists()
        and (last.base, last.contents) == (target.base, target.contents)
        and {phase.name for phase in phases} <= {*last.done}
    )


def choose_device(wanted: Device | None) -> Device:
    """The device asked for, else that of the present `.venv`, else what this machine has."""
    last = Progress.load()
    if wanted:
        return wanted
    if last:
        return "cuda" if last.device == "cuda" else "cpu"
    return detect_device()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the project's environment, .venv, or bring it up to date.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: as before, else what this machine has")
    parser.add_argument("--dev", action="store_true", help="also install the tools for tests and checks")
    return parser.parse_args()


def main() -> int:
    """Set up and report in plain words what went wrong."""
    arguments = parse_arguments()
    try:
        if PYTHON_VERSION not in SUPPORTED_PYTHONS:
            raise SetupError(f"Python {' or '.join(SUPPORTED_PYTHONS)} is needed; this is {PYTHON_VERSION}.")
        with one_at_a_time():
            set_up(choose_device(arguments.device), dev=arguments.dev)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next set-up goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
