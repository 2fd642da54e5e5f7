"""How a reward may fail to say what a response is worth."""

from __future__ import annotations


class Undecided(BaseException):
    """Whether an answer is right is not known: it is too expensive, or there is too little memory or stack to tell.

    No ``Exception``: nothing on the way may take it for "not equal".
    """


class ServerAway(OSError):
    """A reward server cannot be reached, which says nothing about the responses: it may be asked again later."""


class ServerLate(ServerAway):
    """It took the request and did not answer in time."""


class SourceFailed(RuntimeError):
    """One of the rewards failed; ``__cause__`` says how, the message names the reward."""
