"""A name that cannot be reached is said within seconds, with what to do; what the cache has is used."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset import hub
from dapo_openrlhf.dataset.hub import check_name, prefer_cache

SETTING = "actor.model_name_or_path"


class Hub(BaseHTTPRequestHandler):
    """Has one model, and one for whoever shows a token."""

    def do_GET(self) -> None:
        shown = self.headers.get("Authorization") == "Bearer secret"
        known = {"/api/models/a/b": 200, "/api/models/a/gated": 200 if shown else 401, "/api/models/a/broken": 503}
        self.send_response(known.get(self.path, 404))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", *hub.OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # put back, whatever is set meanwhile
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{found.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address + "/")
        yield address
        found.shutdown()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    return address


def cache(home: Path, name: str) -> None:
    (home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "1").mkdir(parents=True)


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_name(SETTING, name, say=pytest.fail)
    return str(caught.value)


def test_what_the_hub_has_is_left_to_the_libraries(server: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    check_name(SETTING, "a/b", say=pytest.fail)
    assert refusal("a/gated").startswith(f"{SETTING}: a/gated is no folder here, and {server} answers 401: ")
    (home / "token").write_text("secret\n")
    check_name(SETTING, "a/gated", say=pytest.fail)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "secret" not in refusal("a/gated") and "wrong" not in refusal("a/gated")
    assert "answers 404: there is no such name" in refusal("a/typo")
    assert f"{server} cannot be reached (HTTP 503); give a local folder" in refusal("a/broken")
    cache(home, "a/private")
    check_name(SETTING, "a/private", say=pytest.fail)


def test_without_the_hub_the_cache_is_used_or_the_remedy_is_said(nobody: str, home: Path) -> None:
    words = refusal("a/b")
    assert words.startswith(
        f"{SETTING}: a/b is no folder here and is not in the cache {home}/hub, and {nobody} cannot be"
    )
    assert "Connection refused" in words and "HF_HOME" in words and "HF_ENDPOINT" in words
    said: list[str] = []
    cache(home, "a/b")
    check_name(SETTING, "a/b", say=said.append)
    assert len(said) == 1 and f"a/b is taken from the cache {home}/hub" in said[0]
    assert os.environ["HF_HUB_OFFLINE"] == "1", "or libraries would try for minutes"
    check_name(SETTING, "a/b", say=pytest.fail)
    assert "HF_HUB_OFFLINE forbids to ask the hub" in refusal("a/other")


def test_a_data_set_is_left_to_its_library_which_looks_into_its_cache(nobody: str) -> None:
    words = prefer_cache("a/b", kind="datasets")
    assert words.startswith(f"{nobody} cannot be reached (") and words.endswith("or a mirror in HF_ENDPOINT")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert prefer_cache("a/b", kind="datasets").startswith("HF_HUB_OFFLINE forbids")


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.0)
    monkeypatch.setattr(hub, "_ask", lambda url: threading.Event().wait())
    assert "cannot be reached (no answer within 0 s)" in refusal("a/b")


@pytest.mark.parametrize("name", ["no address", "a/ü b", "../up", ""])
def test_names_that_no_hub_has(server: str, name: str) -> None:
    assert refusal(name).startswith(f"{SETTING}: {name} is no folder here")
