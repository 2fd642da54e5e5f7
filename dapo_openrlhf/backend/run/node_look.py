"""What one machine has for a run: packages, files, disk, shared memory, limits, ports (without Ray)."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from dapo_openrlhf.backend.run.needs import installed
from dapo_openrlhf.config.reward_origin import PythonFile
from dapo_openrlhf.config.settings import Config

PACKAGES = ("torch", "transformers", "vllm", "deepspeed", "openrlhf", "ray")
SHARED = Path("/dev/shm")
SOCKETS = 64
"""Number of ports that must be free at once on the loopback interface; a run's own cluster takes some thirty."""
_ANY = float("inf")
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a machine is looked at for."""

    paths: Mapping[str, str]
    """Absolute paths of files and folders that every machine of a run reads, by the settings that name them."""
    folder: str
    """The nearest folder of the run's that exists, to which trainer ranks write."""
    token: str = ""
    """Name of a file in it by which it is recognised; empty on the machine itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was found on one machine. Sizes are in bytes."""

    versions: Mapping[str, str | None]
    """Of Python and :data:`PACKAGES`; None for a package that is not installed."""
    unseen: tuple[str, ...]
    """Settings whose paths are not there."""
    folder_trouble: str
    """Why the run's folder cannot be written; empty if it can."""
    disk_free: int
    shared_free: int | None
    """In :data:`SHARED`; None if that cannot be written."""
    memory: int
    """Of the machine in all."""
    open_files: tuple[float, float]
    """The soft and the hard limit of a process."""
    processes: float
    """Most processes and threads."""
    ports: int
    """Number of ports that could be had at once, at most :data:`SOCKETS`."""
    ports_trouble: str
    interfaces: tuple[str, ...]
    asked_interfaces: Mapping[str, str]
    """What the environment says of :data:`INTERFACES`."""


def asked_of(config: Config, folder: Path) -> Asked:
    """What a run's machines are looked at for. ``folder``: the run's folder, or the one that it is to be made in."""
    named = {
        "actor.model_name_or_path": config.actor.model_name_or_path,
        "critic.model_name_or_path": config.critic.model_name_or_path,
        "train.agent_func_path": config.train.agent_func_path,
    }
    if config.train.agent_func_path is None:
        files = [origin.path for origin in config.reward.origins if isinstance(origin, PythonFile)]
        named |= {f"reward.remote_url {file}": file for file in files}
    paths = {name: str(_file_of(Path(path).absolute())) for name, path in named.items() if path and Path(path).exists()}
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return Asked(paths=paths, folder=str(nearest))


def _file_of(path: Path) -> Path:
    """What tells a model's folder from an empty one of its name, where a disk is not mounted."""
    return path / "config.json" if (path / "config.json").is_file() else path


@contextmanager
def with_token(asked: Asked) -> Iterator[Asked]:
    """The same with a file in the folder by which others recognise it, for a while; without where none can be written."""
    with ExitStack() as held:
        try:
            file = held.enter_context(tempfile.NamedTemporaryFile(prefix=".looked-at-", dir=asked.folder))
        except OSError:
            yield asked
        else:
            yield replace(asked, token=os.path.basename(file.name))


def look(asked: Asked) -> Look:
    """Look at the machine that this runs on."""
    ports, trouble = _ports()
    return Look(
        versions={"Python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        unseen=tuple(name for name, path in asked.paths.items() if not os.path.exists(path)),
        folder_trouble=_folder_trouble(Path(asked.folder), asked.token),
        disk_free=shutil.disk_usage(asked.folder).free if os.path.isdir(asked.folder) else 0,
        shared_free=shutil.disk_usage(SHARED).free if SHARED.is_dir() and os.access(SHARED, os.W_OK) else None,
        memory=psutil.virtual_memory().total,
        open_files=(_number(resource.getrlimit(resource.RLIMIT_NOFILE)[0]), _most_files()),
        processes=min(_number(resource.getrlimit(resource.RLIMIT_NPROC)[0]) if os.getuid() else _ANY, _of_container()),
        ports=ports,
        ports_trouble=trouble,
        interfaces=tuple(sorted(name for _, name in socket.if_nameindex())),
        asked_interfaces={name: os.environ.get(name, "") for name in INTERFACES},
    )


def lacking(look: Look | str, asked: Asked) -> Iterator[str]:
    """What keeps a machine from taking part in a run, in words, with the remedy."""
    if isinstance(look, str):
        yield f"{look}; install this project there as here, at the same place"
        return
    for name in look.unseen:
        yield f"{name}: {asked.paths[name]} is not there; put it on a disk that all machines see, or copy it there"
    if look.folder_trouble:
        yield (
            f"run.dir: {asked.folder} {look.folder_trouble}; trainer ranks write checkpoints there: name a folder on a disk "
            "that all machines see"
        )


def _most_files() -> float:
    return _number(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _folder_trouble(folder: Path, token: str) -> str:
    if not folder.is_dir():
        return "is not there" if not folder.exists() else "is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    if token and not (folder / token).exists():
        return "is another folder of that name, on a disk of its own"
    return ""


def _number(limit: int) -> float:
    return _ANY if limit == resource.RLIM_INFINITY else float(limit)


def _of_container() -> float:
    """The control group's limit of processes; infinity where there is none."""
    for file in (Path("/sys/fs/cgroup/pids.max"), Path("/sys/fs/cgroup/pids/pids.max")):
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        return float(text) if text.isdigit() else _ANY
    return _ANY


def _ports() -> tuple[int, str]:
    """How many ports can be had at once, and why no more."""
    opened: list[socket.socket] = []
    try:
        for _ in range(SOCKETS):
            opened.append(socket.create_server(("127.0.0.1", 0)))
    except OSError as error:
        return len(opened), error.strerror or str(error)
    finally:
        for each in opened:
            each.close()
    return len(opened), ""
