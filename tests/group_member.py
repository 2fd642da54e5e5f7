"""One member of a transfer group in a process of its own: ``python group_member.py KIND RANK ADDRESS PORT FAULT``.

Three members transfer a version; then the last one falls to FAULT (a signal's number) and the others, told to leave,
transfer the next version in a group of two.
"""

from __future__ import annotations

import os
import sys
from typing import Any

SIZES = (1 << 20,) * 6


def main(kind: Any, rank: int, address: str, port: int, fault: int) -> None:
    """Print what became of each version."""
    import torch

    from dapo_openrlhf.backend.messages import Meeting, TransferAborted
    from dapo_openrlhf.backend.transfer import buckets
    from dapo_openrlhf.backend.transfer.checksum import Checksum
    from dapo_openrlhf.backend.transfer.group import Group

    buckets.BUCKET_BYTES = max(SIZES)

    def joined(generation: int, size: int) -> Group:
        at = Meeting(kind=kind, address=address, port=port, generation=generation, timeout=900.0)
        return Group(at, rank=rank, size=size, device=torch.device("cpu"))

    def transferred(group: Group, version: int) -> int:
        if rank == 0:
            return group.send(torch.full((size,), version, dtype=torch.uint8) for size in SIZES)
        checksum = Checksum()
        for bucket in group.receive(SIZES):
            checksum.add(bucket)
        return checksum.value()

    group = joined(0, 3)
    say("version 1", transferred(group, 1))
    if rank == 2:
        os.kill(os.getpid(), fault)
    try:
        say("version 2", transferred(group, 2))
    except TransferAborted:
        say("aborted")
        group = joined(1, 2)
        say("version 2", transferred(group, 2))
    os._exit(0)


def say(*words: object) -> None:
    """To the test."""
    print(*words, flush=True)


if __name__ == "__main__":
    own_kind, own_rank, at_address, at_port, own_fault = sys.argv[1:]
    main(own_kind, int(own_rank), at_address, int(at_port), int(own_fault))
