"""Ports and network interfaces on which a run's processes find each other."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.backend.run.node_look import SOCKETS, Look
from dapo_openrlhf.check.each_machine import each_machine
from dapo_openrlhf.check.finding import Finding, failed, passed
from dapo_openrlhf.check.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Fail where no ports are free, or a library was told to use an interface that is not there."""
    yield from each_machine(subject, _judge, "those of the machines are looked at where the run runs")


def _judge(look: Look) -> Iterator[Finding]:
    there = set(look.interfaces)
    for variable, wanted in look.asked_interfaces.items():
        if missing := missing_interfaces(wanted, there):
            yield failed(
                f"{variable}: this machine has no network interface {', '.join(missing)}",
                f"use one of {', '.join(look.interfaces)}, or unset it",
            )
    if look.ports_trouble:
        yield failed(
            f"only {look.ports} ports are free on 127.0.0.1 ({look.ports_trouble})", "end what holds them (ss -ltn)"
        )
    else:
        yield passed(f"{SOCKETS} ports are free on 127.0.0.1; interfaces {', '.join(look.interfaces)}")


def missing_interfaces(wanted: str, there: set[str]) -> list[str]:
    """Those of NCCL's list that do not exist: beginnings of names, after ``=`` whole names, after ``^`` those to leave out."""
    if not wanted or wanted.startswith("^"):
        return []
    exact = wanted.startswith("=")
    names = [name.partition(":")[0] for name in wanted.removeprefix("=").split(",") if name]
    found = [any(name == one if exact else one.startswith(name) for one in there) for name in names]
    return [] if any(found) else names
