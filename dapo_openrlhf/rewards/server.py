"""OpenRLHF's remote reward protocol: a POST of JSON, answered with JSON (standard library only)."""

from __future__ import annotations

import base64
import functools
import http.client
import json
import netrc
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from dapo_openrlhf.rewards.failures import ServerAway, ServerLate
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.replies import BadReply, excerpt, read_reply
from dapo_openrlhf.types import Score

AWAY = (429, 502, 503, 504)
"""HTTP statuses by which a server, or a proxy before it, says that it cannot answer now."""

SHARE = 0.9
"""Share of a call's time limit that the server gets, so that a late server is noticed before the reward process is
killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReward:
    """A reward from a server, which has ``timeout`` seconds per response."""

    address: str
    correct_from: float
    timeout: float

    def __call__(self, question: Question) -> list[Score]:
        """Score each response. Raises :class:`ServerAway`, or ``BadReply`` for a reply that cannot be used."""
        count = len(question)
        content = {
            "query": list(question.queries),
            "prompts": [question.prompt] * count,
            "labels": [question.label] * count,
        }
        return read_reply(
            self._post(json.dumps(content).encode(), SHARE * self.timeout * count), self.correct_from, count
        )

    def _post(self, body: bytes, seconds: float) -> object:
        request = urllib.request.Request(self.address, data=body, headers={"Content-Type": "application/json"})
        if password := basic_authorization(urlsplit(self.address).hostname or ""):
            request.add_unredirected_header("Authorization", password)  # not for a host that this one names
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            if error.code in AWAY:
                raise ServerAway(f"HTTP {error.code} {error.reason}") from error
            raise BadReply(f"HTTP {error.code} {error.reason}: {excerpt(error.read(1000))}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise
            raise _away(error.reason, seconds) from error
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _away(error, seconds) from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise BadReply(f"answered {excerpt(text)}, which is no JSON: {error}") from error


@functools.cache
def basic_authorization(host: str) -> str | None:
    """The header value with the user and password for a host in ~/.netrc, or in the file that ``NETRC`` names.

    Raises ``BadReply`` for a file that cannot be read as one.
    """
    file = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(file).authenticators(host)
    except OSError:
        return None
    except (netrc.NetrcParseError, UnicodeDecodeError) as error:  # whose words may be a password
        line = f", line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else ""
        raise BadReply(f"{file}{line}: not in the form of netrc(5)") from None
    if found is None:
        return None
    user, _, password = found
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _away(reason: object, seconds: float) -> ServerAway:
    if isinstance(reason, TimeoutError):
        return ServerLate(f"no answer within {seconds:g} s (reward.timeout)")
    return ServerAway(str(reason) or type(reason).__name__)
