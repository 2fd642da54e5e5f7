"""Asks the Hugging Face hub for a name before libraries do, which try for minutes (standard library only).

Where the hub cannot be reached, or must not be, a copy in the cache is used.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dapo_openrlhf.config.errors import ConfigError

Kind = Literal["models", "datasets"]

HUB_SECONDS = 8.0
"""Seconds in which the hub must answer, the look-up of its address included."""
REFUSED = (401, 403, 404)
"""HTTP statuses by which the hub says that there is no such name, or not for you."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def check_name(setting: str, name: str, *, kind: Kind = "models", say: Callable[[str], None]) -> None:
    """Refuse a name that neither the hub nor the cache has. Raises ``ConfigError`` that names ``setting``.

    Where only the cache has it, this process and its children are kept from asking the hub, which ``say`` is told.
    """
    cached = any((_cache() / f"{kind}--{name.replace('/', '--')}" / "snapshots").glob("*"))
    if _offline():
        if not cached:
            raise ConfigError(
                f"{setting}: {name} is no folder here and is not in the cache {_cache()}, and HF_HUB_OFFLINE forbids to ask "
                "the hub; give a local folder, name the cache that has it in HF_HOME, or unset HF_HUB_OFFLINE"
            )
        return
    status, trouble = _answer(f"{_endpoint()}/api/{kind}/{urllib.parse.quote(name)}")
    if status in REFUSED and not cached:
        raise ConfigError(
            f"{setting}: {name} is no folder here, and {_endpoint()} answers {status}: there is no such name, or it needs "
            "access (HF_TOKEN); correct it, or give a local folder"
        )
    if trouble and not cached:
        raise ConfigError(
            f"{setting}: {name} is no folder here and is not in the cache {_cache()}, and {_endpoint()} cannot be reached "
            f"({trouble}); give a local folder, name the cache that has it in HF_HOME, or a mirror in HF_ENDPOINT"
        )
    if trouble:
        os.environ["HF_HUB_OFFLINE"] = "1"
        say(f"{setting}: {_endpoint()} cannot be reached ({trouble}); {name} is taken from the cache {_cache()}")


def prefer_cache(name: str, *, kind: Kind) -> str:
    """Keep this process and its children from asking a hub that cannot be reached, before they import what asks it.

    Returns why it cannot, with the remedy; empty text if it can.
    """
    trouble = "HF_HUB_OFFLINE forbids to ask the hub"
    if not _offline():
        _, why = _answer(f"{_endpoint()}/api/{kind}/{urllib.parse.quote(name)}")
        if not why:
            return ""
        os.environ["HF_HUB_OFFLINE"] = "1"
        trouble = f"{_endpoint()} cannot be reached ({why})"
    return f"{trouble}; give a file, name the cache that has it in HF_HOME, or a mirror in HF_ENDPOINT"


def _offline() -> bool:
    return any(os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE") for variable in OFFLINE)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _home() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser()


def _cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub").expanduser()


def _token() -> str:
    file = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token")
    try:
        return os.environ.get("HF_TOKEN") or file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _answer(url: str) -> tuple[int, str]:
    """The status of an address and an empty text, or 0 and why there is none."""
    found: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: found.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)  # the look-up of a name knows no time limit
    return found[0] if found else (0, f"no answer within {HUB_SECONDS:g} s")


def _ask(url: str) -> tuple[int, str]:
    request = urllib.request.Request(url)
    if token := _token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as reply:
            return reply.status, ""
    except urllib.error.HTTPError as error:
        return (0, f"HTTP {error.code}") if error.code >= 500 else (error.code, "")
    except urllib.error.URLError as error:
        return 0, str(error.reason)
    except (OSError, ValueError) as error:
        return 0, str(error) or type(error).__name__
