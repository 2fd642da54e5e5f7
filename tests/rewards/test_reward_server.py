"""Reward servers that go away and come back: what is waited for, what is an error, and what is kept meanwhile."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_actors import FakeActor
from patience import HANG_SECONDS

from dapo_openrlhf.backend.messages import GroupTexts
from dapo_openrlhf.backend.run.reward_pool import Judged, RewardActor, RewardPool, RewardTimes
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_reward
from dapo_openrlhf.config.reward_origin import Server
from dapo_openrlhf.pipeline.outage import Outage, ServerGone
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.rewards.process import SERVER_AWAY, Scored
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.replies import BadReply
from dapo_openrlhf.rewards.server import ServerReward, basic_authorization
from dapo_openrlhf.rewards.settings import RewardSettings, reward_settings
from dapo_openrlhf.types import Prompt, Score

pytestmark = pytest.mark.long

PROMPT = Prompt(id=4, text="<s>3+4=", label=7)
TEXTS = GroupTexts(responses=("7", "8"), queries=("<s>3+4=7</s>", "<s>3+4=8</s>"))
QUESTION = Question(responses=["7"], queries=["3+4=7"], prompt="3+4=", label="7")
TIMES = RewardTimes(group=60.0, start=60.0, server=100.0)


def scored(reward: float | None, reason: str = "judged", error: str = "", *, timed_out: bool = False) -> Scored:
    score = None if reward is None else Score(correct=reward >= 1, reward=reward)
    return Scored(score=score, error=error or None, timed_out=timed_out, reason=reason, seconds=0.0)


AWAY = scored(None, SERVER_AWAY, "http://judge: refused")
LATE = scored(None, SERVER_AWAY, "http://judge: late", timed_out=True)


# ---------------------------------------------------------------------------------- a real server on this machine


@contextmanager
def server(port: int, answer: Callable[[dict[str, Any]], tuple[int, bytes]]) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if status == 0:
                self.connection.close()
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield
        running.shutdown()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def test_a_server_goes_away_in_a_group_and_comes_back(port: int) -> None:
    """Refused, 503, a broken connection; then the first response is not asked about again."""
    asked: list[dict[str, Any]] = []

    def right(request: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(request)
        return 200, json.dumps({"rewards": [float(query.endswith("7</s>")) for query in request["query"]]}).encode()

    def second_fails(status: int) -> Callable[[dict[str, Any]], tuple[int, bytes]]:
        return lambda request: right(request) if request["query"][0].endswith("7</s>") else (status, b"busy")

    worker = RewardActor(
        settings=RewardSettings(sources=(Server(f"http://127.0.0.1:{port}/get_reward"),), timeout=60.0),
        start_timeout=60.0,
    )
    worker.ready()
    refused = worker.score(TEXTS, PROMPT).scored
    assert [found.reason for found in refused] == [SERVER_AWAY] and "refused" in str(refused[0].error)
    for status, words in ((503, "HTTP 503"), (0, "closed connection"), (429, "HTTP 429")):
        with server(port, second_fails(status)):
            first, second = worker.score(TEXTS, PROMPT).scored
        assert first.score == Score(correct=True, reward=1.0)
        assert second.reason == SERVER_AWAY and words in str(second.error)
    with server(port, right):
        (rest,) = worker.score(TEXTS, PROMPT, 1).scored
    assert rest.score == Score(correct=False, reward=0.0)
    assert asked[-1] == {"query": ["<s>3+4=8</s>"], "prompts": ["<s>3+4="], "labels": [7]}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b"no such model", "HTTP 500 Internal Server Error: b'no such model'"),
        (400, b"", "HTTP 400 Bad Request"),
        (404, b"", "HTTP 404"),
        (200, b"<html>", "answered b'<html>', which is no JSON"),
        (200, b'{"rewards": [NaN]}', "nan is no finite number"),
        (200, b'{"rewards": [1, 2]}', "2 rewards were answered"),
        (200, b"[1]", "not a mapping with 'rewards'"),
    ],
)
def test_what_a_server_makes_of_a_response_is_an_error_of_the_reward(
    port: int, status: int, body: bytes, words: str
) -> None:
    address = f"http://127.0.0.1:{port}/"
    worker = RewardActor(settings=RewardSettings(sources=(Server(address),), timeout=60.0), start_timeout=60.0)
    with server(port, lambda request: (status, body)):
        (found,) = worker.score(TEXTS, PROMPT).scored
    assert found.reason == "reward_error"
    assert address in str(found.error) and words in str(found.error)


def test_a_server_is_asked_about_a_group_at_once_and_a_file_beside_it_about_each_response(
    port: int, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def right(request: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(request)
        ends = [query.endswith("7</s>") for query in request["query"]]
        reply = {"rewards": [[float(end)] for end in ends], "scores": ends, "extra_logs": {"length": [3, 5]}}
        return 200, json.dumps(reply).encode()

    (tmp_path / "first.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return {'rewards': 10.0 * len(queries)}\n"
    )
    section = build_reward(
        {"remote_url": [f"http://127.0.0.1:{port}/", str(tmp_path / "first.py")], "timeout": 60.0}, source="x"
    )
    worker = RewardActor(settings=reward_settings(section), start_timeout=60.0)
    with server(port, right):
        scores = [found.score for found in worker.score(TEXTS, PROMPT).scored]
    assert asked == [
        {"query": ["<s>3+4=7</s>", "<s>3+4=8</s>"], "prompts": ["<s>3+4="] * 2, "labels": [7, 7]},
    ]
    assert scores == [
        Score(correct=True, reward=11.0, score=1.0, logs={"length": 3.0}),
        Score(correct=False, reward=10.0, score=0.0, logs={"length": 5.0}),
    ]


@pytest.mark.parametrize(
    ("given", "at_once", "one_by_one"),
    [("auto", None, True), (1, 1, False), (4, 4, False), (None, None, False)],
)
def test_how_many_responses_a_call_is_about(given: object, at_once: int | None, one_by_one: bool) -> None:
    section = build_reward({"remote_url": ["http://judge:80", "rule"], "batch_size": given}, source="x")
    settings = reward_settings(section)
    assert (settings.batch_size, settings.files_one_by_one) == (at_once, one_by_one)
    assert reward_settings(build_reward({"batch_size": "auto"}, source="x")).batch_size == 1
    with pytest.raises(ConfigError, match=r"batch_size.*'all' is not accepted"):
        build_reward({"batch_size": "all"}, source="x")


# ------------------------------------------------------------------------------------------- the pool that waits


def pool(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any], said: list[str], workers: int = 1) -> RewardPool:
    monkeypatch.setattr(RewardPool, "_start", lambda self: FakeActor(score=answer))
    return RewardPool(workers=workers, settings=RewardSettings(), times=TIMES, say=said.append)


def test_groups_wait_for_a_server_and_keep_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the second response on, for 40 s. Of 20 groups one asks at a time."""
    calls: list[tuple[float, str, int]] = []
    said: list[str] = []

    async def main() -> float:
        now = asyncio.get_running_loop().time

        def answer(texts: str, prompt: Prompt, begin: int) -> Judged:
            calls.append((now(), texts, begin))
            if 0 < now() < 40 or (begin == 0 and texts == "0"):
                return Judged(scored=(scored(1.0), AWAY) if begin == 0 and texts == "0" else (AWAY,))
            return Judged(scored=(scored(1.0), scored(0.0))[begin:])

        rewards = pool(monkeypatch, answer, said)
        first = asyncio.create_task(rewards.score("0", PROMPT))
        await asyncio.sleep(0.5)
        others = [asyncio.create_task(rewards.score(str(n), PROMPT)) for n in range(1, 20)]
        for scores in await asyncio.gather(first, *others):
            assert [score.reward for score in scores] == [1.0, 0.0]
        return now()

    assert 40 <= run_virtual(main()) < 80
    assert [begin for _, texts, begin in calls if texts == "0"] == [0] + [1] * (sum(t == "0" for _, t, _ in calls) - 1)
    assert sum(1 for time, _, _ in calls if 0.5 < time < 40) < 40, "pauses grow"
    assert len(said) == 2
    assert "unreachable: http://judge: refused; waiting up to 100 s (reward.server_timeout)" in said[0]
    assert said[1].startswith("reward server is back after 4")


def test_a_server_that_stays_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def main() -> None:
        rewards = pool(monkeypatch, lambda *_: Judged(scored=(AWAY,)), said, workers=2)
        with pytest.raises(
            ServerGone, match=r"unreachable for 1\d\d s \(reward.server_timeout\): http://judge: refused"
        ):
            await asyncio.gather(*(rewards.score(str(n), PROMPT) for n in range(3)))
        assert 100 <= asyncio.get_running_loop().time() < 101

    run_virtual(main())
    assert len(said) == 1


def test_a_response_that_a_server_never_answers_is_an_error_while_others_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        rewards = pool(
            monkeypatch,
            lambda texts, prompt, begin: Judged(scored=(LATE if texts == "hard" else scored(1.0),)),
            [],
        )
        hard = asyncio.create_task(rewards.score("hard", PROMPT))
        for _ in range(20):
            await asyncio.sleep(1.0)
            await rewards.score("easy", PROMPT)
        with pytest.raises(GroupError, match="response 0 to prompt 4: http://judge: late, 3 times") as raised:
            await hard
        assert raised.value.reason == "reward_timeout"

    run_virtual(main())


def test_a_group_that_is_given_up_while_it_waits_leaves_its_worker_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        answers = iter([AWAY, scored(1.0)])
        rewards = pool(monkeypatch, lambda *_: Judged(scored=(next(answers),)), [])
        given_up = asyncio.create_task(rewards.score("a", PROMPT))
        await asyncio.sleep(0.1)
        given_up.cancel()
        assert (await rewards.score("b", PROMPT))[0].reward == 1.0

    run_virtual(main())


def test_pauses_grow_with_the_outage_and_everybody_goes_on_at_once() -> None:
    async def main() -> list[float]:
        now = asyncio.get_running_loop().time
        outage = Outage(timeout=300.0, say=lambda words: None)
        times = []
        for _ in range(8):
            await outage.wait("refused")
            times.append(now())
        waiting = [asyncio.create_task(outage.wait("refused")) for _ in range(50)]
        await asyncio.sleep(0)
        outage.answered()
        await asyncio.gather(*waiting)
        assert now() == times[-1]
        return times

    times = run_virtual(main())
    pauses = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert pauses == sorted(pauses) and pauses[0] == 1.0 and max(pauses) <= 30.0


def test_several_servers_of_one_reward_are_refused() -> None:
    with pytest.raises(ConfigError, match="OpenRLHF asks addresses with a comma between them in turn"):
        build_reward({"remote_url": "http://a:1/get,http://b:1/get"}, source="x")
    assert build_reward({"remote_url": ["http://a:1/", "http://b:1/"]}, source="x").server_timeout == 600.0


# ------------------------------------------------------------------------------------------------------- passwords


def test_a_user_and_password_come_from_netrc_and_only_for_their_host(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"rewards": 1.0}')

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        for text in ("machine 127.0.0.1 login me password hunter2", "machine elsewhere login me password hunter2"):
            (tmp_path / "netrc").write_text(text)
            basic_authorization.cache_clear()
            reward = ServerReward(address=f"http://127.0.0.1:{port}/", correct_from=1.0, timeout=HANG_SECONDS)
            assert reward(QUESTION) == [Score(correct=True, reward=1.0)]
        running.shutdown()
    assert seen == ["Basic bWU6aHVudGVyMg==", None]  # base64 of me:hunter2
    basic_authorization.cache_clear()


@pytest.mark.parametrize("text", ["machine host login me hunter2 password", "hunter2", "machine \udcff"])
def test_a_broken_netrc_is_named_without_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_bytes(text.encode("utf-8", "surrogateescape"))
    basic_authorization.cache_clear()
    with pytest.raises(BadReply, match="not in the form of netrc") as caught:
        basic_authorization("host")
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None
