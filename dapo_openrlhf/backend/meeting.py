"""The place where the members of a torch process group meet, open to one interface only."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # which torch does not re-export
from torch.distributed.rendezvous import register_rendezvous_handler

MEETING = "meeting://"
"""The init method of torch's process groups that meets like ``env://``, but at :func:`meeting_store`. To import this file makes it
known to torch."""


def meeting_store(address: str, port: int, *, rank: int, world_size: int, timeout: timedelta) -> TCPStore:
    """The store of a group; blocks until all members have joined.

    Rank 0 listens on ``address`` alone, whereas torch by itself listens on every interface of the machine.
    """
    if rank != 0:
        return TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    handle = listening_at(address, port).detach()
    return TCPStore(
        address, port, world_size, is_master=True, timeout=timeout, master_listen_fd=handle, use_libuv=False
    )


def listening_at(address: str, port: int) -> socket.socket:
    """A socket that listens on one address alone, IPv4 or IPv6; on a free port if ``port`` is 0."""
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(place[:2], family=family)


def _meet(url: str, *, timeout: timedelta, **_: object) -> Iterator[tuple[TCPStore, int, int]]:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    yield meeting_store(address, port, rank=rank, world_size=world_size, timeout=timeout), rank, world_size
    raise RuntimeError(f"{url} cannot meet again")


register_rendezvous_handler("meeting", _meet)
