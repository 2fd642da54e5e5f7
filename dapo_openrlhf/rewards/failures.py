"""The ways in which a reward may fail to score a response."""

from __future__ import annotations


class Undecided(BaseException):
    """It is not known whether an answer is right: deciding it is too expensive, or takes too much memory or stack.

    It is not an ``Exception``, so that no handler on the way takes it for "not equal".
    """


class ServerAway(OSError):
    """A reward server cannot be reached, which says nothing about the responses: it may be asked again later."""


class ServerLate(ServerAway):
    """The server took the request and did not answer in time."""


class SourceFailed(RuntimeError):
    """One of several rewards failed; ``__cause__`` is its error, the message names the reward."""
