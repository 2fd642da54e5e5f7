"""Rewards in processes of their own: nothing hangs, exhausts memory or executes, and an error is never a wrong answer."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import HANG_SECONDS, Clock

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_reward
from dapo_openrlhf.config.reward_origin import PythonFile, Rule, Server
from dapo_openrlhf.rewards.process import RewardProcess, RewardUnavailable, Scored
from dapo_openrlhf.rewards.replies import read_reply
from dapo_openrlhf.rewards.settings import RewardSettings, reward_settings
from dapo_openrlhf.rewards.verifier import TAIL
from dapo_openrlhf.types import Score

pytestmark = pytest.mark.long

DATA = Path(__file__).parents[1] / "data"
HOSTILE = [json.loads(line) for line in (DATA / "hostile_answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def process() -> Iterator[RewardProcess]:
    """The rule, with all the time it needs."""
    with RewardProcess(RewardSettings(timeout=HANG_SECONDS)) as process:
        yield process


@pytest.fixture(scope="module")
def hasty() -> Iterator[RewardProcess]:
    """The rule with 0.4 seconds, so that what takes for ever does not hold the tests up."""
    with RewardProcess(RewardSettings(timeout=0.4)) as process:
        yield process


def function_judge(
    folder: Path, source: str, clock: Callable[[], float] = time.monotonic, **options: object
) -> RewardProcess:
    file = folder / "reward.py"
    file.write_text(source)
    return RewardProcess(
        RewardSettings(sources=(PythonFile(str(file)),), **{"timeout": HANG_SECONDS, **options}), clock=clock
    )  # type: ignore[arg-type]


def verdict(scored: Scored) -> bool | None:
    """True or False, None for an error; checks that a judgement is one or the other."""
    assert (scored.score is None) == (scored.error is not None) == (scored.reason != "judged")
    return None if scored.score is None else scored.score.correct


# ----------------------------------------------------------------------------------------------- algebra

RIGHT = [
    (r"\sqrt{8}", r"2\sqrt{2}"), ("√8", r"2\sqrt{2}"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), (r"2\pi", r"\pi+\pi"),
    ("x^2+2x+1", "(x+1)^2"), ("2x", "x+x"), ("y = 2x + 1", "y=1+2x"), ("30 + 4", "34"), (r"\binom{5}{2}", "10"), (r"\log_2 8", "3"),
    ("7", r"\boxed{7}"), (r"\pm 2", "2,-2"),
    (r"\{1, 2\}", r"\{2,1\}"), ("1, 2", r"\{1,2\}"), ("2,1", "1,2"), (r"x=1 \text{ or } x=2", "1,2"), ("(1, 4/2)", "(1,2)"),
    (r"(-\infty, 6/2]", r"(-\infty,3]"), (r"x \in [3,\infty)", r"[3, \infty)"), (r"[1,2] \cup [3,4]", r"[3,4]\cup[1,2]"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 8/2 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"), (r"\sum_{i=1}^{3} i", "6"),
    (r"\sqrt{2}\text{ cm}", r"2^{1/2}"), ("3 + 4i", "4i+3"), (r"\varnothing", r"\emptyset"),
]  # fmt: skip
WRONG = [
    ("7,8", "8"), ("7 or 8", "8"), ("8", "7,8"), ("(2,1)", "(1,2)"), ("[1,2]", "(1,2)"), ("(1,2,3)", "(1,2)"), (r"7\pm 1", "7"),
    ("x=7", "y=7"), ("x=3, y=7", "7"), ("2x", "3x"), (r"\infty", "7"), ("1/0", "7"), ("7^", "7"), (r"7\foo", "7"),
    (r"\sqrt{7}", "7"), ("-x", "x"), ("(x+1)^2", "x^2+1"), ("6<x<8", "7"), ("A. 7", "A"), (r"\text{7 or 8}", "78"), ("1234", "(1,234)"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "label"), RIGHT)
def test_equal_by_algebra(process: RewardProcess, answer: str, label: str) -> None:
    assert verdict(process.score(f"so\nAnswer: {answer}", label=label)) is True
    assert verdict(process.score(rf"so \boxed{{{answer}}}", label=label)) is True


@pytest.mark.parametrize(("answer", "label"), WRONG)
def test_not_equal_by_algebra(process: RewardProcess, answer: str, label: str) -> None:
    assert verdict(process.score(f"Answer: {answer}", label=label)) is False


def test_the_rule_rewards_as_eq_7_says(process: RewardProcess) -> None:
    scores = [process.score(response, label="7").score for response in ("Answer: 7", "Answer: 8", "7")]
    assert scores == [
        Score(correct=right, reward=reward) for right, reward in [(True, 1.0), (False, -1.0), (False, -1.0)]
    ]


def test_a_gold_answer_that_cannot_be_read_is_an_error(process: RewardProcess) -> None:
    scored = process.score("Answer: 2", label=r"\frac{1}{")
    assert verdict(scored) in (False, None)
    scored = process.score("Answer: x+1", label="^^x")
    assert verdict(scored) is None and "gold answer" in str(scored.error)


def test_integers_have_as_many_digits_as_they_like(process: RewardProcess) -> None:
    many = "7" * 1900
    assert verdict(process.score(f"Answer: {many}", label=many)) is True
    assert verdict(process.score(f"Answer: {many}", label="7" * 5000)) is False
    assert verdict(process.score(r"Answer: \frac{10^{4400}}{10^{4399}} + \sqrt{1}", label="11")) is True


# ------------------------------------------------------------------------------------------- hostile answers


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case["name"].replace(" ", "-"))
def test_hostile_answers(hasty: RewardProcess, process: RewardProcess, case: dict[str, str]) -> None:
    hasty.wait_ready()
    scored = hasty.score(case["response"], label=case["answer"])
    if scored.reason == "reward_timeout" and case["expect"] == "wrong":  # or this machine is slow or busy
        scored = process.score(case["response"], label=case["answer"])
    found = "error" if verdict(scored) is None else "right" if verdict(scored) else "wrong"
    assert found != "right"
    assert case["expect"] in (found, "either"), scored


@pytest.mark.parametrize(
    "answer",
    ["9" * 1_000_000, "\\sqrt{" * 150_000, "\\boxed{" * 150_000, "{" * 1_000_000, "9^" * 500_000, "\x00" * 1_000_000, "Answer:" * 150_000],
    ids=["digits", "radicals", "boxes", "braces", "powers", "NUL", "answers"],
)  # fmt: skip
def test_megabytes(hasty: RewardProcess, answer: str) -> None:
    hasty.wait_ready()
    scored = hasty.score("Answer: " + answer, label="7")
    assert not verdict(scored)


def test_the_corpus_is_one() -> None:
    assert len(HOSTILE) >= 60 and len({case["name"] for case in HOSTILE}) == len(HOSTILE)


def test_nothing_was_executed() -> None:
    """Several hostile answers would leave this file in the current folder."""
    assert not Path("pwned").exists()


LATEX = st.sampled_from(
    [
        "\\frac{", "\\sqrt{", "}", "{", "(", ")", "[", "]", "^", "_", "1", "7", "x", "+", "-", "=", ",", "\\pi", "\\sin", "!", "\\sum_{",
        "\\int", "\\infty", "|", "\\left(", "\\right)", "\\text{", "%", "\\cup", "<", "\\le", ".", "\\begin{matrix}", "&", "\\\\",
    ]
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.lists(LATEX, max_size=25).map("".join), st.text(max_size=60)))
def test_fuzzed_answers(hasty: RewardProcess, answer: str) -> None:
    hasty.wait_ready()
    scored = hasty.score("Answer: " + answer, label="123456789")
    assert not verdict(scored)


def test_too_little_memory_is_no_wrong_answer() -> None:
    """These are equal, and working them out takes more than the 1 MiB."""
    with RewardProcess(RewardSettings(timeout=HANG_SECONDS, memory=1)) as process:
        monster = "+".join(f"{11 + term % 5}^{{{200_000 + term}}}" for term in range(60))
        scored = process.score(f"Answer: {monster}", label=f"{monster}+1")
        assert (verdict(scored), scored.error) == (None, "took over 1 MiB (reward.memory)")
        assert verdict(process.score("Answer: 7", label="7")) is True


# ------------------------------------------------------------------------------------- processes and their ends

POISON = """
import os, subprocess, sys, time
def reward_func(queries, prompts, labels):
    what = queries[0].removeprefix(prompts[0])
    if what == "hang": time.sleep(1e6)
    if what == "spin":
        while True: pass
    if what == "memory":
        blocks = []
        while True: blocks.append(bytearray(1 << 22))
    if what == "giant": b"x" * (8 << 30)
    if what == "refused": bytearray(1 << 60)
    if what == "exit": os._exit(3)
    if what == "leave": sys.exit(4)
    if what == "crash": os.abort()
    if what == "raise": raise RuntimeError("broken \\x1b[31m\\ud800")
    if what == "child": print(subprocess.Popen(["sleep", "1000"]).pid, file=open(labels[0] + "~", "w"), flush=True); os.rename(labels[0] + "~", labels[0]); time.sleep(1e6)
    if what == "print": print("noise"); sys.stdout.flush()
    if what == "fork" and os.fork() == 0: return {"rewards": 9.0}
    if what == "write":
        for handle in range(3, 20):
            try: os.write(handle, b'{"correct": true, "reward": 9.0}\\nno JSON\\n')
            except OSError: pass
    if what == "close": os.closerange(0, 256)
    if what == "nan": return {"rewards": float("nan")}
    if what == "none": return None
    if what == "two": return {"rewards": [1.0, 2.0]}
    return {"rewards": 0.5, "scores": 1.0}
"""


CLOCK = Clock()
"""The poisoned process's. It stands still, so that a busy machine makes nothing late."""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcess]:
    """A reward that does what the response says."""
    with function_judge(tmp_path_factory.mktemp("reward"), POISON, timeout=1.0, memory=64, clock=CLOCK) as process:
        yield process


@pytest.mark.parametrize(
    ("response", "reason", "words", "replaced"),
    [
        ("hang", "reward_timeout", "took over 1 s (reward.timeout)", True),
        ("spin", "reward_timeout", "took over 1 s", True),
        ("memory", "reward_error", "took over 64 MiB (reward.memory)", True),
        ("giant", "reward_error", "took over 64 MiB (reward.memory)", True),
        ("refused", "reward_error", "MemoryError", True),
        ("exit", "reward_died", "exited with status 3", True),
        ("leave", "reward_died", "exited with status 4", True),
        ("crash", "reward_died", "SIGABRT", True),
        ("close", "reward_died", "exited with status 1", True),
        ("raise", "reward_error", r"RuntimeError: broken \x1b[31m\ud800 (reward.py, line 16)", False),
        ("nan", "reward_error", "nan is no finite number", False),
        ("none", "reward_error", "not a mapping with 'rewards'", False),
        ("two", "reward_error", "2 rewards were answered", False),
    ],
)
def test_a_failure_is_an_error_and_the_next_response_is_judged(
    poisoned: RewardProcess, monkeypatch: pytest.MonkeyPatch, response: str, reason: str, words: str, replaced: bool
) -> None:
    poisoned.wait_ready()
    pid = poisoned.pid
    if reason == "reward_timeout":
        monkeypatch.setattr(CLOCK, "passes", lambda: True)
    scored = poisoned.score(response, label="7", prompt="1+6=")
    assert (verdict(scored), scored.reason) == (None, reason)
    assert words in str(scored.error)
    monkeypatch.undo()
    assert (poisoned.pid != pid) == replaced
    assert poisoned.score("fine", label="7").score == Score(correct=True, reward=0.5, score=1.0)


def test_what_a_reward_prints_is_no_answer(poisoned: RewardProcess) -> None:
    assert poisoned.score("print", label="7").score == Score(correct=True, reward=0.5, score=1.0)


@pytest.mark.parametrize("what", ["fork", "write"])
def test_a_response_gets_the_answer_to_it_and_no_other(poisoned: RewardProcess, what: str) -> None:
    for response in (what, "print", what, "print"):
        assert poisoned.score(response, label="7").score == Score(correct=True, reward=0.5, score=1.0)
    assert poisoned.score("nan", label="7").score is None


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or before it is read
        return False


def wait_until_ended(pid: int) -> bool:
    deadline = time.monotonic() + HANG_SECONDS
    while is_running(pid) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    return not is_running(pid)


def test_what_a_reward_started_ends_with_it(
    poisoned: RewardProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned.wait_ready()
    monkeypatch.setattr(CLOCK, "passes", lambda: (tmp_path / "pid").exists())
    scored = poisoned.score("child", label=str(tmp_path / "pid"))
    assert scored.reason == "reward_timeout"
    assert wait_until_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("doing", ["hang", "spin"])
def test_a_judge_without_a_parent_ends(tmp_path: Path, doing: str) -> None:
    (tmp_path / "reward.py").write_text(POISON)
    script = (
        "from dapo_openrlhf.config.reward_origin import PythonFile\n"
        "from dapo_openrlhf.rewards.process import RewardProcess\n"
        "from dapo_openrlhf.rewards.settings import RewardSettings\n"
        f"process = RewardProcess(RewardSettings(sources=(PythonFile({str(tmp_path / 'reward.py')!r}),), timeout=1e6))\n"
        "process.wait_ready()\n"
        "print(process.pid, flush=True)\n"
        f"process.score({doing!r}, label='7')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_until_ended(pid)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ValueError('no key')", "ValueError: no key (reward.py, line 1)"),
        ("import nowhere", "No module named 'nowhere'"),
        ("def reward_func(", "SyntaxError"),
        ("x = 1", "defines no reward_func(queries, prompts, labels)"),
        ("import os; os._exit(7)", "exited with status 7 while loading"),
    ],
)
def test_a_reward_that_does_not_load_says_why(tmp_path: Path, source: str, words: str) -> None:
    with function_judge(tmp_path, source) as process, pytest.raises(RewardUnavailable) as caught:
        process.wait_ready()
    assert words in str(caught.value)


def test_a_reward_that_loads_for_ever_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("import time; time.sleep(1e6)")
    reward = RewardSettings(sources=(PythonFile(str(tmp_path / "reward.py")),))
    with (
        RewardProcess(reward, start_timeout=0.5) as process,
        pytest.raises(RewardUnavailable, match=r"not load within 0\.5 s"),
    ):
        process.wait_ready()


# --------------------------------------------------------------------------------------- functions and endpoints


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ({"rewards": 1.0}, Score(correct=True, reward=1.0)),
        ({"rewards": 0.9}, Score(correct=False, reward=0.9)),
        ({"rewards": -3, "scores": 1}, Score(correct=True, reward=-3.0, score=1.0)),
        ({"rewards": [2.0], "scores": [[0.0]], "extra_logs": {}}, Score(correct=False, reward=2.0, score=0.0)),
    ],
)
def test_replies_in_openrlhf_s_forms(reply: object, score: Score) -> None:
    assert read_reply(reply, 1.0) == [score]


@pytest.mark.parametrize("reply", [None, 1.0, [1.0], {}, {"rewards": []}, {"rewards": "x"}, {"rewards": float("inf")}])
def test_other_replies_are_errors(reply: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        read_reply(reply, 1.0)


class Endpoint(http.server.BaseHTTPRequestHandler):
    """A reward server: right when the query ends in 7; it fails when the query says so."""

    seen: list[dict[str, list[str]]] = []  # noqa: RUF012 - for all requests

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(request)
        query = request["query"][0]
        if query.endswith("fail"):
            self.send_error(500)
            return
        body = b"<html>" if query.endswith("html") else json.dumps({"rewards": [float(query.endswith("7"))]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a reward server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Endpoint.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/get_reward"
        server.shutdown()


def test_an_endpoint_in_openrlhf_s_protocol(endpoint: str) -> None:
    with RewardProcess(RewardSettings(sources=(Server(endpoint),))) as process:
        assert process.score("7", label="x", prompt="3+4=").score == Score(correct=True, reward=1.0)
        assert process.score("8", label="x", prompt="3+4=").score == Score(correct=False, reward=0.0)
        failed, garbage = process.score("fail", label="x"), process.score("html", label="x")
    assert Endpoint.seen[0] == {"query": ["3+4=7"], "prompts": ["3+4="], "labels": ["x"]}
    assert (failed.reason, f"{endpoint}: HTTP 500" in str(failed.error)) == ("reward_error", True)
    assert (garbage.reason, "answered b'<html>', which is no JSON" in str(garbage.error)) == ("reward_error", True)


def test_several_rewards_are_weighed_and_the_first_decides(tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return {'rewards': len(queries[0]) - len(prompts[0])}\n"
    )
    with RewardProcess(
        RewardSettings(sources=(Rule(), PythonFile(str(tmp_path / "length.py"))), weights=(2.0, -0.5))
    ) as process:
        # rule +1 and -1; both responses have 9 characters: 2 * 1 - 0.5 * 9 = -2.5 and 2 * -1 - 4.5 = -6.5
        assert process.score("Answer: 7", label="7", prompt="3+4=").score == Score(correct=True, reward=-2.5)
        assert process.score("Answer: 8", label="7", prompt="3+4=").score == Score(correct=False, reward=-6.5)


def test_settings_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("")
    section = build_reward(
        {"remote_url": ["rule", "mine.py"], "weights": [1, 0.5], "timeout": 2.0, "memory": 64}, source="x"
    )
    assert reward_settings(section) == RewardSettings(
        sources=(Rule(), PythonFile(str(tmp_path / "mine.py"))), weights=(1.0, 0.5), timeout=2.0, memory=64
    )
    assert reward_settings(build_reward({}, source="x")) == RewardSettings()
    assert RewardSettings.from_json(reward_settings(section).to_json()) == reward_settings(section)
    with pytest.raises(ConfigError, match=r"there is no file yours\.py"):
        reward_settings(build_reward({"remote_url": "yours.py"}, source="x"))


# ------------------------------------------------------------------------------------------------------- operations


def test_a_long_response_costs_what_its_tail_costs(process: RewardProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """What crosses to the rule's process has a bound, however long a response and its prompt are."""
    asked: list[dict[str, Any]] = []
    ask = process._ask

    def record(question: dict[str, Any], deadline: float) -> dict[str, object]:
        asked.append(question)
        return ask(question, deadline)

    monkeypatch.setattr(process, "_ask", record)
    for length in (10, 100_000):
        assert verdict(process.score("so " * length + "Answer: 7", label="7", prompt="1" * length)) is True
    assert [len(question["prompt"]) for question in asked] == [0, 0]
    assert [[len(response) for response in question["responses"]] for question in asked] == [[39], [TAIL]]
