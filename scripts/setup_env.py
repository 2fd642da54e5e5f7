"""Make the project's environment, `.venv`, or bring it up to date; instant when nothing has changed.

    python3 scripts/setup_env.py [--device cpu|cuda] [--dev] [--torch-index URL]

This is the one place that decides between the CPU and the CUDA packages: CUDA where an NVIDIA driver is visible, CPU
elsewhere, unless `--device` says otherwise. The choice is remembered until `.venv` is removed.

Packages come through the pip configuration of whoever runs this. The work is cut into phases that are recorded as they
end, so an interrupted set-up goes on where it stopped. What pip prints is in `.venv/setup.log`. docs/install.md says more.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environment.commands import Commands
from environment.disk import check_room
from environment.locks import hash_contents
from environment.phases import Installer
from environment.place import PYTHON_VERSION, SUPPORTED_PYTHONS, Device, Place, SetupError
from environment.progress import Progress
from environment.torch_build import Torch

DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/nvidia-smi")


def detect_device() -> Device:
    """CUDA where an NVIDIA driver is visible."""
    return "cuda" if any(Path(path).exists() for path in DRIVER_FILES) else "cpu"


@contextmanager
def one_at_a_time(commands: Commands) -> Iterator[None]:
    """Wait until no other set-up of this checkout is at work."""
    with Path(__file__).open() as script:
        try:
            fcntl.flock(script, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up, or what an interrupted one left running, to end", flush=True)
            fcntl.flock(script, fcntl.LOCK_EX)
        commands.held_locks[:] = [script.fileno()]
        yield
        commands.held_locks.clear()


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


def venv_works(place: Place) -> bool:
    """Whether there is a `.venv` with a working pip."""
    command = (place.python, "-m", "pip", "--version")
    return place.python.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def make_venv(commands: Commands) -> None:
    """Make an empty `.venv` in place of what is there, from the interpreter beneath a virtual environment."""
    place = commands.place
    shutil.rmtree(place.venv, ignore_errors=True)
    place.venv.mkdir(exist_ok=True)
    commands.run((getattr(sys, "_base_executable", sys.executable), "-m", "venv", place.venv))


def discard_half_installed(place: Place) -> None:
    """Remove the traces of packages whose installation was interrupted: pip would take them for installed."""
    for entry in place.site_packages.iterdir():
        half_installed = entry.suffix == ".dist-info" and not (entry / "RECORD").exists()
        if half_installed or entry.name.startswith("~"):
            shutil.rmtree(entry, ignore_errors=True)


def prepare(commands: Commands, target: Progress) -> Progress:
    """Have a `.venv` of the wanted base, kept from the last set-up or new; return what it has behind it."""
    place = commands.place
    last = Progress.load(place)
    if last and last.base == target.base and venv_works(place):
        discard_half_installed(place)
        return last if last.contents == target.contents else target
    with timed("virtual environment"):
        make_venv(commands)
        target.save(place)
    return target


def set_up(commands: Commands, torch: Torch, *, dev: bool) -> None:
    """Run the phases that `.venv` does not have behind it yet."""
    place, device = commands.place, torch.device
    target = Progress(base=[device, PYTHON_VERSION, str(place.root)], contents=hash_contents(place))
    phases = Installer(commands, torch).phases(dev=dev)
    last = Progress.load(place)
    if last and last.covers(place, target, (phase.name for phase in phases)):
        return
    print(f"setting up .venv for {device}, Python {PYTHON_VERSION}", flush=True)
    started = time.monotonic()
    if not (last and last.base == target.base and "packages" in last.done):
        check_room(place, device)
    progress = prepare(commands, target)
    for phase in phases:
        if phase.name not in progress.done:
            with timed(phase.title):
                phase.run()
            progress.done.append(phase.name)
            progress.save(place)
    progress.finish(place)
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the project's environment, .venv, or bring it up to date.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: as before, else what this machine has")
    parser.add_argument("--dev", action="store_true", help="also install the tools for tests and checks")
    parser.add_argument(
        "--which", action="store_true", help="print cpu or gpu, for which .venv was made, and do nothing"
    )
    parser.add_argument("--torch-index", metavar="URL", help="a package index that is asked for torch alone, first")
    return parser.parse_args()


def main() -> int:
    """Set up and report in plain words what went wrong."""
    arguments = parse_arguments()
    place = Place(Path(__file__).resolve().parent.parent)
    commands = Commands(place)
    if arguments.which:
        last = Progress.load(place)
        print("gpu" if last and last.device == "cuda" else "cpu")
        return 0
    try:
        if PYTHON_VERSION not in SUPPORTED_PYTHONS:
            raise SetupError(f"Python {' or '.join(SUPPORTED_PYTHONS)} is needed; this is {PYTHON_VERSION}.")
        with one_at_a_time(commands):
            last = Progress.load(place)
            device: Device = arguments.device or (last.device if last else detect_device())
            set_up(commands, Torch(commands, device, index=arguments.torch_index), dev=arguments.dev)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or place.venv}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next set-up goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
