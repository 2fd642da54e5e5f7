"""A transfer group of processes loses a member: the others leave, at once when told, and go on in a group of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

pytestmark = pytest.mark.real

MEMBER = Path(__file__).resolve().parent.parent / "group_member.py"


@pytest.mark.parametrize(
    ("kind", "fault"), [("gloo", signal.SIGKILL), ("gloo", signal.SIGSTOP), ("shared", signal.SIGSTOP)]
)
def test_those_left_get_the_version_in_a_new_group(kind: str, fault: signal.Signals) -> None:
    from dapo_openrlhf.backend.transfer.store import StoreHost

    host = StoreHost.at("127.0.0.1")
    place = [host.address, str(host.port), str(int(fault))]
    members = [
        subprocess.Popen([sys.executable, str(MEMBER), kind, str(rank), *place], stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    try:
        os.waitpid(members[2].pid, os.WUNTRACED)  # dead, or stopped
        host.abort(0, f"member 2 met {fault.name}")
        said = [member.communicate(timeout=HANG_SECONDS)[0].splitlines() for member in members[:2]]
    finally:
        for member in members:
            member.kill()
            member.wait()
    assert [member.returncode for member in members[:2]] == [0, 0], "those that are left end as they should"
    sent, received = said
    assert sent == received
    first, aborted, second = sent
    assert (first.startswith("version 1 "), aborted, second.startswith("version 2 ")) == (True, "aborted", True)
    assert first.split()[-1] != second.split()[-1]
