"""Ports and network interfaces on which a run's processes find each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from dapo_openrlhf.check.finding import Finding, failed, passed
from dapo_openrlhf.check.subject import Subject

SOCKETS = 64
"""Number of ports that must be free at once on the loopback interface; a run's own cluster takes some thirty."""
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def check(subject: Subject) -> Iterator[Finding]:
    """Fail where no ports are free, or a library was told to use an interface that is not there."""
    if not subject.machines().here:
        yield passed("those of the machines are looked at where the run runs")
        return
    there = {name for _, name in socket.if_nameindex()}
    for variable in INTERFACES:
        if missing := missing_interfaces(os.environ.get(variable, ""), there):
            yield failed(
                f"{variable}: this machine has no network interface {', '.join(missing)}",
                f"use one of {', '.join(sorted(there))}, or unset it",
            )
    opened: list[socket.socket] = []
    try:
        for _ in range(SOCKETS):
            opened.append(socket.create_server(("127.0.0.1", 0)))
    except OSError as error:
        yield failed(
            f"only {len(opened)} ports are free on 127.0.0.1 ({error.strerror})", "end what holds them (ss -ltn)"
        )
    else:
        yield passed(f"{SOCKETS} ports are free on 127.0.0.1; interfaces {', '.join(sorted(there))}")
    finally:
        for each in opened:
            each.close()


def missing_interfaces(wanted: str, there: set[str]) -> list[str]:
    """Those of NCCL's list that do not exist: beginnings of names, after ``=`` whole names, after ``^`` those to leave out."""
    if not wanted or wanted.startswith("^"):
        return []
    exact = wanted.startswith("=")
    names = [name.partition(":")[0] for name in wanted.removeprefix("=").split(",") if name]
    found = [any(name == one if exact else one.startswith(name) for one in there) for name in names]
    return [] if any(found) else names
