"""Resolves ``RAY_ADDRESS`` and probes the cluster before Ray joins it, because Ray itself would try for minutes."""

from __future__ import annotations

import os
import socket

from dapo_openrlhf.config.errors import ConfigError

JOIN_SECONDS = 30.0
CLIENT = "ray://"
REMEDY = "correct it, start the cluster, or unset RAY_ADDRESS to use this machine"


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
    """Resolve ``auto`` to a cluster that runs on this machine, or else to the one that was started last."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        found: str = canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        raise ConfigError(f"{name} auto: no Ray cluster runs on this machine; {REMEDY}") from error
    return found


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
