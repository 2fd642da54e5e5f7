"""A Ray cluster of the run's own on this machine.

Everything of it listens on the loopback interface and asks for a token, its files are in a folder that only this user
can enter, and neither processes nor files of it are left over, however it ends.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # not in its stub

from dapo_openrlhf.backend.run.ray_folder import private_folder
from dapo_openrlhf.stopping import kill_all

START_SECONDS = (30.0, 120.0, 240.0)
"""Seconds that Ray may take to start, at the first attempt and at the next ones. Its raylet gives up sooner if its
agents, which are Python processes, are slow to start; a further attempt finds their files in memory."""
MARK = "DAPO_OPENRLHF_RAY"
"""Environment variable by which the cluster's processes are recognised; its value is the cluster's folder."""
LEAVE_SECONDS = 10.0
"""Seconds for killed processes to disappear."""
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch between clusters of several machines and ones that stay on the loopback interface. In spite of its name
it works on every system."""


class RayNotStarted(RuntimeError):
    """Ray did not start, though it was tried again with more time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The resources that the cluster offers to actors."""

    cpus: int
    gpus: int
    object_store_bytes: int | None
    """Shared memory for objects; None leaves it to Ray."""


@contextmanager
def own_cluster(
    size: Size, *, say: Callable[[str], None], logs: Path | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Start Ray and connect to it; at the end stop it, and end what it leaves behind.

    ``say`` hears where Ray's files go if that is not the folder for temporary files, that the start is tried again, and
    where Ray's logs are kept: they go to ``logs`` if the block raises an ordinary exception. ``options`` for ``ray.init``
    come before our own. Raises :class:`RayNotStarted`.
    """
    with private_folder(say) as folder, _environment(folder):
        try:
            _start(size, folder, say, options or {})
            yield
        except Exception:
            if logs is not None and keep_logs(folder, logs):
                say(f"Ray's logs are kept in {logs}")
            raise
        finally:
            ray.shutdown()
            end_processes(folder)


# ------------------------------------------------------------------------------------------------------------ closed


def closed_environment(folder: Path) -> dict[str, str]:
    """Environment variables of every process of a cluster whose files are in ``folder``."""
    return {
        MARK: str(folder),
        LOOPBACK_SWITCH: "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "RAY_worker_niceness": "0",
        "RAY_task_events_report_interval_ms": "0",  # else the GCS keeps the history of 100,000 calls, which nobody reads
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Set the variables for the block, for this process and for those that it starts.

    Ray reads some of its own when it is imported, and is told here that they have changed.
    """
    before, clusters = dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER
    ours = closed_environment(folder)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(ours)
    _tell_ray()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name in ours:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
        _tell_ray()


def _tell_ray() -> None:
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    Config.initialize(json.dumps({"AUTH_MODE": mode}).encode())
    AuthenticationTokenLoader.instance().reset_cache()


# ------------------------------------------------------------------------------------------------------------- start


def _start(size: Size, folder: Path, say: Callable[[str], None], options: Mapping[str, Any]) -> None:
    for attempt, seconds in enumerate(START_SECONDS):
        begun = time.monotonic()
        try:
            with _patient(seconds):
                _init(size, folder / "ray", options)
            return
        except Exception as error:  # Ray raises bare ones
            ray.shutdown()
            end_processes(folder)
            words = f"Ray did not start within {time.monotonic() - begun:.0f} s: {' '.join(str(error).split())}"
            if attempt + 1 == len(START_SECONDS):
                raise RayNotStarted(f"{words} The machine may be overloaded or out of memory") from error
            say(f"{words} It is tried again with {START_SECONDS[attempt + 1]:g} s")


def _init(size: Size, folder: Path, options: Mapping[str, Any]) -> None:
    ours: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(
        address="local",
        num_cpus=size.cpus,
        num_gpus=size.gpus,
        include_dashboard=False,
        object_store_memory=size.object_store_bytes,
        _temp_dir=str(folder),
        **(ours | {**options}),
    )


class _RayletEnded(Exception):
    """Not a ``RuntimeError``, after which Ray would ask again."""


def _has_raylet() -> bool:
    children = psutil.Process().children()
    return any(child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in children)


@contextmanager
def _patient(seconds: float) -> Iterator[None]:
    """Let Ray wait this long for its node, instead of for 30 seconds, which it has no setting for."""
    ask = services.get_node

    def wait_for_node(address: str, node: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return ask(address, node)  # type: ignore[no-untyped-call]  # Ray's
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise
                if not _has_raylet():
                    raise _RayletEnded(
                        "its raylet ended; its agents did not start in time, or there is no memory."
                    ) from error
                time.sleep(0.2)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = ask


# --------------------------------------------------------------------------------------------------------------- end


def processes_of(folder: Path) -> list[psutil.Process]:
    """The living processes of the cluster in ``folder``, without this one."""
    return [
        process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, str(folder))
    ]


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == folder)
    except psutil.Error:  # another user's, or one that has just ended
        return False


def end_processes(folder: Path) -> None:
    """Kill what is left of the cluster, and wait until it is gone.

    Ray's agents and workers end by themselves some seconds after the process that started them, but not at once, and not
    if they hang; processes that the rewards started may have left their process group.
    """
    left = processes_of(folder)
    kill_all(left)
    psutil.wait_procs(left, timeout=LEAVE_SECONDS)


KEPT_BYTES = 1 << 20
"""Of each log the last so many bytes are kept."""


def keep_logs(folder: Path, logs: Path) -> bool:
    """Copy the ends of Ray's logs to ``logs``; false if there are none or they cannot be written."""
    found = [path for path in folder.glob("ray/session_2*/logs/*") if path.is_file() and path.stat().st_size]
    try:
        logs.mkdir(exist_ok=True)
        for path in found:
            with path.open("rb") as log, (logs / path.name).open("wb") as kept:
                log.seek(max(0, path.stat().st_size - KEPT_BYTES))
                shutil.copyfileobj(log, kept)
    except OSError:
        return False
    return bool(found)
