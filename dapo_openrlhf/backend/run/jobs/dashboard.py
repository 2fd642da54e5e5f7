"""Finds the dashboard of a cluster from the address that a user gives, within seconds."""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

from dapo_openrlhf.config.addresses import without_user
from dapo_openrlhf.config.errors import ConfigError

DEFAULT = "http://127.0.0.1:8265"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that name a cluster where ``--address`` does not, in their order."""
ANSWER_SECONDS = 5.0
"""Seconds in which a dashboard must answer, the look-up of its name included."""
START = "start the cluster with its dashboard, or give the address `ray start --head` prints, such as http://host:8265"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An address, and the option or variable that gave it."""

    text: str
    source: str


def given_address(option: str | None) -> Given:
    """The address to use: an explicit ``--address``, else that of a variable, else this machine's dashboard."""
    if option is not None:
        return Given(text=option.strip(), source="--address")
    for name in VARIABLES:
        text = os.environ.get(name, "").strip()
        if text and text != "local":
            return Given(text=text, source=name)
    return Given(text=DEFAULT, source="--address")


def dashboard_of(given: Given, headers: Mapping[str, str]) -> str:
    """The http address of the dashboard that answers there. Raises ``ConfigError`` in one line."""
    text, source = given.text, given.source
    if text.startswith("ray://"):
        raise ConfigError(
            f"{source}: {text} is the address of a Ray client, and jobs go through the dashboard; give http://host:8265"
        )
    if text.startswith(("http://", "https://")):
        return _answering(text.rstrip("/"), given, headers)
    if text == "auto":
        from dapo_openrlhf.backend.run.ray_address import resolve

        found = resolve("auto", name=source)
        assert found is not None
        return _answering(_of_cluster(found, given), given, headers)
    host, _, port = text.rpartition(":")
    if not host or "/" in text or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{source}: {without_user(text)} is no address; write http://host:port, host:port, or auto")
    if not trouble(f"http://{text}", headers):
        return f"http://{text}"
    return _answering(_of_cluster(text, given), given, headers)


def _answering(url: str, given: Given, headers: Mapping[str, str]) -> str:
    if words := trouble(url, headers):
        told = without_user(given.text)
        at = "" if url == given.text.rstrip("/") else f", whose dashboard is {without_user(url)}"
        raise ConfigError(f"{given.source}: {told}{at}: {words}; {START}")
    return url


def _of_cluster(address: str, given: Given) -> str:
    """The dashboard of the cluster whose own address this is."""
    from dapo_openrlhf.backend.run.ray_address import ask

    ask(address, f"{given.source}: no Ray cluster and no dashboard answers at {without_user(given.text)}", START)

    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # not in its stub
    from ray.exceptions import RpcError

    try:
        found = GcsClient(address=address).internal_kv_get(
            DASHBOARD_ADDRESS.encode(), KV_NAMESPACE_DASHBOARD, timeout=ANSWER_SECONDS
        )
    except (RpcError, ValueError) as error:
        raise ConfigError(
            f"{given.source}: the Ray cluster at {address} does not say its dashboard: {error}"
        ) from error
    if not found:
        raise ConfigError(f"{given.source}: the Ray cluster at {address} runs without a dashboard; {START}")
    return f"http://{found.decode()}"


def trouble(url: str, headers: Mapping[str, str]) -> str:
    """Why no dashboard answers at an address; empty where one does."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_asked(url, headers)), daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)  # the look-up of a name knows no time limit
    return found[0] if found else f"no Ray dashboard answers within {ANSWER_SECONDS:g} s"


def _asked(url: str, headers: Mapping[str, str]) -> str:
    try:
        request = urllib.request.Request(f"{_bare(url)}/api/version", headers={**_password(url), **headers})
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
            values = json.loads(reply.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return ""  # a dashboard that asks for a token; Ray's client has it, or says what is missing
        return f"what answers there is no Ray dashboard (HTTP {error.code})"
    except urllib.error.URLError as error:
        return f"no Ray dashboard answers ({error.reason})"
    except (OSError, http.client.HTTPException) as error:
        return f"no Ray dashboard answers ({error})"
    except ValueError:  # of an address that is none, or an answer that is not JSON
        return "what answers there is no Ray dashboard"
    return "" if isinstance(values, dict) and "ray_version" in values else "what answers there is no Ray dashboard"


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def _password(url: str) -> dict[str, str]:
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return {"Authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()} if at else {}
