"""Asks whether reward servers answer at all, before anything is generated for them (standard library)."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request

from dapo_openrlhf.config.addresses import without_user
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.reward_origin import Server
from dapo_openrlhf.rewards.server import AWAY
from dapo_openrlhf.rewards.settings import RewardSettings

SERVER_SECONDS = 4.0
"""Seconds in which a server must answer, the look-up of its name included."""


def check_servers(settings: RewardSettings) -> None:
    """Refuse rewards whose server does not answer now. Raises ``ConfigError`` that names the address."""
    servers = [source for source in settings.sources if isinstance(source, Server)]
    troubles: dict[str, str] = {}
    asking = {
        server.address: threading.Thread(
            target=lambda address=server.address: troubles.update({address: _trouble(address)}), daemon=True
        )
        for server in servers
    }
    for thread in asking.values():
        thread.start()
    for address, thread in asking.items():
        thread.join(SERVER_SECONDS)  # the look-up of a name knows no time limit
        trouble = troubles.get(address, f"no answer within {SERVER_SECONDS:g} s")
        if trouble:
            raise ConfigError(
                f"reward.remote_url: the reward server {without_user(address)} does not answer ({trouble}); start it, or "
                "correct the address"
            )


def _trouble(address: str) -> str:
    """Why a server does not answer; empty where it does, whatever it says to a request that asks for no score."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=SERVER_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code} {error.reason}" if error.code in AWAY else ""
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__
    return ""
