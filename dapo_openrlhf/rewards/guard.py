"""Ends whatever a reward process has started, however rewards and their owner end (standard library only; Linux).

``python -m dapo_openrlhf.rewards.child`` forks twice: rewards are computed in the grandchild, and the two above it guard it. A
guard is the subreaper of everything below it, so that processes which leave their session or their parent stay its descendants
(``PR_SET_CHILD_SUBREAPER`` in prctl(2)). It ends them when its child ends, or when the owner's end of the socket closes, which
the kernel does even for an owner that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

MARK = "DAPO_OPENRLHF_REWARD"
"""Environment variable by which processes are found whose guards were killed; its value differs for each process."""
PAUSE_SECONDS = 0.005
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def fork_guarded(handle: int) -> None:
    """Fork twice, and return in the grandchild only; the others become guards and exit like it.

    ``handle``: the socket whose other end the owner holds. The outer guard ends what is left if a reward kills or stops
    the inner one. The inner guard ends everything if a dying owner kills the outer one first, as Ray's workers do with
    their children.
    """
    _fork_below_guard(handle)
    inner = _fork_below_guard(handle)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != inner:
        os._exit(1)


def _fork_below_guard(handle: int) -> int:
    """Fork, and return in the child, with the id of the parent, which stays as a guard and exits like the child."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.close(writer)
        os.setsid()  # what the rewards do to their own process group does not reach the guard
        return guard
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with open(os.devnull, "r+b") as nothing:
        for standard in range(3):  # so that the pipe of printed lines ends with those who print
            os.dup2(nothing.fileno(), standard)
    status = _wait_for(child, handle, reader)
    end_descendants()
    _exit_like(status)


def owner_gone(handle: int) -> bool:
    """Wait until the owner's end of the socket is closed; False if this end was closed."""
    poll = select.poll()
    poll.register(handle, select.POLLRDHUP)
    return any(event & (select.POLLHUP | select.POLLRDHUP) for _, event in poll.poll())


def end_with_owner(handle: int) -> None:
    """End this process once its owner has ended, whatever the main thread does, in case the guards were stopped."""
    if owner_gone(handle):
        os._exit(0)


def end_descendants() -> None:
    """Kill all descendants of this process until none is left, apart from those that it may not kill."""
    spared: set[int] = set()
    while True:
        _reap()
        living = [pid for pid in _descendants(os.getpid()) if pid not in spared]
        # A look at processes that end meanwhile may miss those below them; a subreaper with descendants has children.
        if not living and (spared or not _has_children()):
            return
        spared |= {pid for pid in living if not _kill(pid)}
        time.sleep(PAUSE_SECONDS)


def end_marked(value: str, *, seconds: float) -> None:
    """Kill all processes with this value of :data:`MARK` until none is left, for at most ``seconds``."""
    entry = f"{MARK}={value}".encode()
    deadline = time.monotonic() + seconds
    while [pid for pid in _marked(entry) if _kill(pid)] and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)


def _wait_for(child: int, handle: int, reader: int) -> int:
    """The child's wait status, or 0 if the owner has gone first."""
    poll = select.poll()
    poll.register(handle, select.POLLRDHUP)
    poll.register(reader, select.POLLIN)
    while True:
        if (status := _reap().get(child)) is not None:
            return status
        events = dict(poll.poll())
        if handle in events:
            return 0
        os.read(reader, 512)


def _reap() -> dict[int, int]:
    """The wait statuses of the children that have ended."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (waited := os.waitpid(-1, os.WNOHANG))[0]:
            ended[waited[0]] = waited[1]
    return ended


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _exit_like(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP have no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _descendants(ancestor: int) -> list[int]:
    """Ids of the living descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found, rest = [], [ancestor]
    while rest:
        below = children.get(rest.pop(), [])
        found += below
        rest += below
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Each process that has not ended, with its parent."""
    for pid in _processes():
        with contextlib.suppress(OSError):  # it has ended in between
            state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                yield pid, int(parent)


def _marked(entry: bytes) -> Iterator[int]:
    for pid in _processes():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _kill(pid: int) -> bool:
    """Kill a process; False if this process may not."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
