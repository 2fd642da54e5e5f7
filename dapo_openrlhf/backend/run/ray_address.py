"""Resolves ``RAY_ADDRESS`` and probes the cluster before Ray joins it, because Ray itself would try for minutes."""

from __future__ import annotations

import os
import socket

import psutil

from dapo_openrlhf.config.errors import ConfigError

JOIN_SECONDS = 30.0
CLIENT = "ray://"
REMEDY = "correct it, start the cluster, or unset RAY_ADDRESS to use this machine"
OF_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the command of a submitted job, and for nothing else."""
OF_RAYLET = "--gcs-address="
"""The option of a raylet that says its cluster's address."""


def asked_address() -> str:
    """The address of the cluster to join, of ``RAY_ADDRESS``; empty to start one here.

    In a submitted job it is that of the cluster whose raylet has started the job. Ray sets ``RAY_ADDRESS`` there to the
    cluster that was started last on the machine, which need not be the one that took the job.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return ""
    return (_above() if OF_JOB in os.environ else None) or address


def _above() -> str | None:
    """The address of the cluster whose raylet has started this process; None where none has, or in a container of its own."""
    for process in psutil.Process().parents():
        try:
            words: list[str] = process.cmdline() if process.name() == "raylet" else []
        except psutil.Error:
            return None
        for word in words:
            if word.startswith(OF_RAYLET):
                return word.removeprefix(OF_RAYLET)
    return None


def resolve(address: str, *, name: str = "RAY_ADDRESS") -> str | None:
    """The address for Ray to join, after a Ray cluster has answered there; None to start a cluster on this machine.

    ``name``: the option or variable that gave the address. Raises ``ConfigError`` within :data:`JOIN_SECONDS` if ``address`` is not that of a cluster, or if no cluster
    answers.
    """
    address = address.strip()
    if address in ("", "local"):
        return None
    if address == "auto":
        found = _latest(name)
        ask(found, f"{name} auto: the cluster that ran here last is at {found}, and no Ray cluster answers there")
        return found
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS: {address} is a dashboard; give the host:port that `ray start --head` prints, or submit the run "
            f"with dapo-openrlhf submit --address {address}"
        )
    ask(address.removeprefix(CLIENT), f"RAY_ADDRESS: no Ray cluster answers at {address}")
    return address


def _latest(name: str) -> str:
    """Resolve ``auto``: the only cluster that runs on this machine, or else the one of them that was started last.

    Ray's own function for this prefers ``RAY_ADDRESS`` to what it is asked.
    """
    from ray._private.services import find_bootstrap_address, find_gcs_addresses

    running, last = sorted(find_gcs_addresses()), find_bootstrap_address(None)
    if last in running or (last and not running):
        return str(last)
    match running:
        case []:
            raise ConfigError(f"{name} auto: no Ray cluster runs on this machine; {REMEDY}")
        case [only]:
            return str(only)
        case several:
            raise ConfigError(
                f"{name} auto: {len(several)} Ray clusters run on this machine, and none of them is known as the one that "
                f"was started last; give the address of one: {', '.join(several)}"
            )


def ask(address: str, complaint: str, remedy: str = REMEDY) -> None:
    """Refuse a ``host:port`` where nothing listens, or where what listens does not speak Ray's protocol."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"RAY_ADDRESS: {address} is no address of a Ray cluster; write host:port, auto, or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=JOIN_SECONDS / 2).close()
    except OSError as error:
        raise ConfigError(f"{complaint} within {JOIN_SECONDS:g} s ({error}); {remedy}") from error
    if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(address):
        raise ConfigError(f"{complaint} within {JOIN_SECONDS:g} s (something listens, but not as Ray does); {remedy}")


def _speaks_grpc(address: str) -> bool:
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=JOIN_SECONDS / 2)
        except grpc.FutureTimeoutError:
            return False
    return True
