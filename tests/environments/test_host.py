"""A user's environments in processes: many episodes at once, and whatever one does, the others' ends are told apart."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from environment_hosts import PROMPT, in_host, limit, opened, stepped
from patience import HANG_SECONDS

from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Observation, Step
from dapo_openrlhf.environments.process import EnvironmentUnavailable

pytestmark = pytest.mark.long

OBEDIENT = """
import asyncio, ctypes, json, os, subprocess, sys, time
from dapo_openrlhf.environments.messages import Action, Environment as Protocol, Observation, Step

class Environment(Protocol):
    def __init__(self):
        self.seen = []

    async def reset(self, prompt):
        self.prompt = prompt
        return Observation(text=prompt.text + " Go on.")

    async def step(self, action):
        self.seen.append(action.text)
        answer = eval(action.text)
        return await answer if asyncio.iscoroutine(answer) else answer

async def a_task(function):
    await asyncio.gather(asyncio.create_task(called(function)), asyncio.sleep(0))
    return Step()

async def called(function):
    function()
"""
"""An environment whose step does what the action says in Python."""
DONE = "Step(done=True)"
FOR_EVER = "asyncio.sleep(1e6)"


def failed(answer: Step | EnvironmentFailed) -> tuple[str, str]:
    assert isinstance(answer, EnvironmentFailed), answer
    return answer.reason, str(answer)


def test_an_episode_walks_from_reset_to_done(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        assert await host.open("a", PROMPT) == Observation(text="<s>What is 1+1? Go on.")
        await opened(host, "b")
        said = "Step(observation=str((self.prompt.label, self.prompt.columns, len(self.seen), action.temperature)), reward=2)"
        step = await stepped(host, "a", said, temperature=0.5)
        assert step == Step(observation="({'answer': '2'}, {'level': 4}, 1, 0.5)", reward=2.0)
        assert await stepped(
            host, "a", "Step(score=0.5, logs={'n': 1, 'bad': float('nan'), 'worse': 'x'}, done=True)"
        ) == Step(score=0.5, logs={"n": 1.0}, done=True)
        assert await stepped(host, "b", "Step(reward=len(self.seen))") == Step(reward=1.0)
        assert failed(await stepped(host, "a", DONE))[0] == "environment_died"
        assert host.open_episodes == 1
        with pytest.raises(ValueError, match="b is open already"):
            await host.open("b", PROMPT)
        await host.close("b")
        await host.close("b")
        await host.open("b", PROMPT)

    in_host(tmp_path, OBEDIENT, play)


def test_many_episodes_wait_at_once(tmp_path: Path) -> None:
    """Each waits until all are there, which one after the other would never do."""
    source = """
import asyncio
from dapo_openrlhf.environments.messages import Observation, Step
here, all_here = [], asyncio.Event()
class Environment:
    def reset(self, prompt):
        return Observation()
    async def step(self, action):
        here.append(self)
        if len(here) == 200:
            all_here.set()
        await all_here.wait()
        return Step(done=True)
"""

    async def play(host: EnvironmentHost) -> list[Step | EnvironmentFailed]:
        names = [f"group {index}/0" for index in range(200)]
        await opened(host, *names)
        return await asyncio.gather(*(stepped(host, name, "") for name in names))

    assert in_host(tmp_path, source, play) == [Step(done=True)] * 200


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    source = "import numpy as np\n" + OBEDIENT
    said = (
        "Step(reward=np.float32(0.5), score=np.int64(2), done=np.bool_(True), max_new_tokens=np.int64(7), "
        "temperature=np.float32(0.5), logs={'a' * 300: np.arange(3).mean(), 'text': 'x'})"
    )

    async def play(host: EnvironmentHost) -> Step | EnvironmentFailed:
        await opened(host, "a")
        return await stepped(host, "a", said)

    assert in_host(tmp_path, source, play) == Step(
        reward=0.5, score=2.0, done=True, max_new_tokens=7, temperature=0.5, logs={"a" * 100: 1.0}
    )


def test_processes_share_the_episodes_out(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        assert len(set(await host.ready())) == 2
        await opened(host, *"abcd")
        pids = [str(await stepped(host, name, "Step(observation=str(os.getpid()))")) for name in "abcd"]
        assert sorted(map(pids.count, pids)) == [2, 2, 2, 2]

    in_host(tmp_path, OBEDIENT, play, processes=2)


BAD = [
    ("1/0", "ZeroDivisionError: division by zero (environment.py, line 15)"),
    ("json.loads('{')", "JSONDecodeError: "),
    ("sys.exit('enough')", "SystemExit: enough (environment.py, line 15)"),
    ("asyncio.current_task().cancel() and asyncio.sleep(1)", "CancelledError"),
    ("{'rewards': 1}", "step() answered {'rewards': 1}; it must answer a Step"),
    ("None", "step() answered None; it must answer a Step"),
    ("Step(reward=float('nan'))", "step(): rewards: nan is no finite number"),
    ("Step(reward=1e9)", "step(): the reward 1e+09 is beyond what a reward may be"),
    ("Step(reward='1')", "step(): rewards: '1' is no number"),
    ("Step(score=float('inf'))", "step(): score is inf; it must be a finite number"),
    ("Step(observation=['x'])", "step(): observation is ['x']; it must be a string"),
    ("Step(observation='x' * 2_000_000)", "step(): observation has 2,000,000 characters"),
    (r"Step(observation='a\ud800')", "step(): observation has half a character ('\\ud800' at 1)"),
    ("Step(done='no')", "step(): done is 'no'; it must be True or False"),
    ("Step(max_new_tokens=0)", "step(): max_new_tokens is 0; it must be a whole number from 1"),
    ("Step(temperature=-1)", "step(): temperature is -1; it must be a number from 0"),
    ("(_ for _ in ()).throw(RecursionError('deep'))", "RecursionError: deep"),
    ("exec('class E(Exception):\\n def __str__(self): return 1/0\\nraise E()')", "E: a message that cannot be read"),
]  # fmt: skip
"""What a step may do, and what is said of it."""


def test_an_error_fails_its_own_episode(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        await opened(host, "b")
        for action, words in BAD:
            await opened(host, "a")
            reason, message = failed(await stepped(host, "a", action))
            assert reason == "environment_error" and message.startswith(f"environment.py: {words}"), message
            assert host.open_episodes == 1
            assert await stepped(host, "b", "Step()") == Step(), action

    in_host(tmp_path, OBEDIENT, play)


def test_what_awaits_for_ever_is_stopped_alone(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        pids = await host.ready()
        await opened(host, "a", "b")
        limit(host, 0.5)
        waiting = asyncio.ensure_future(stepped(host, "a", FOR_EVER))
        assert failed(await waiting) == (
            "environment_timeout",
            "environment.py: step() took over 0.5 s (environment.timeout)",
        )
        limit(host, HANG_SECONDS)
        assert await stepped(host, "b", DONE) == Step(done=True)
        assert await host.ready() == pids

    in_host(tmp_path, OBEDIENT, play)


@pytest.mark.parametrize(
    "action",
    [
        "time.sleep(1e6)",
        "a_task(lambda: time.sleep(1e6))",
        "[1 for _ in iter(int, 1)]",
        "ctypes.PyDLL(None).pause()",
    ],
    ids=["sleeps", "in a task of its own", "computes", "holds the lock of Python"],
)
def test_what_blocks_its_process_is_found(tmp_path: Path, action: str) -> None:
    """And named, though the other episode has waited for longer; that one is not at fault."""

    async def play(host: EnvironmentHost) -> None:
        pids = await host.ready()
        await opened(host, "a", "b", "idle")
        limit(host, 0.5)
        other = asyncio.ensure_future(stepped(host, "b", "asyncio.sleep(0.3, Step())"))
        blocking = await stepped(host, "a", action)
        assert failed(blocking) == (
            "environment_timeout",
            "environment.py: step() took over 0.5 s (environment.timeout)",
        )
        words = "environment.py: its process was ended, because an episode in it did not stop"
        assert failed(await other) == ("environment_died", words)
        assert failed(await stepped(host, "idle", DONE)) == ("environment_died", words)
        assert host.open_episodes == 0
        await opened(host, "a")
        assert await stepped(host, "a", DONE) == Step(done=True)
        assert await host.ready() != pids

    in_host(tmp_path, OBEDIENT, play)


def test_time_stands_still_while_another_episode_computes(tmp_path: Path) -> None:
    """The test says that episode 99 computes, in the memory that the process shares with its owner."""

    async def play(host: EnvironmentHost) -> None:
        await host.ready()
        (process,) = host._processes
        await opened(host, "a", "b")
        limit(host, 0.3)
        asking = {name: asyncio.ensure_future(stepped(host, name, FOR_EVER)) for name in "ab"}
        while len(process._calls) < 2:
            await asyncio.sleep(0.01)
        first, second = process._calls.values()
        process._running.episode = 99
        while first.waited < 1.0:
            await asyncio.sleep(0.01)
        assert not asking["a"].done(), "it has waited for longer than its limit, and is not at fault"
        process._running.episode = 2
        assert failed(await asking["b"])[1] == "environment.py: step() took over 0.3 s (environment.timeout)"
        assert second.charged > 0.3 > first.charged
        asking["a"].cancel()

    in_host(tmp_path, OBEDIENT, play)


def test_whoever_waits_too_long_for_the_others_is_told_so(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        await host.ready()
        (process,) = host._processes
        await opened(host, "a")
        asking = asyncio.ensure_future(stepped(host, "a", FOR_EVER))
        while not process._calls:
            await asyncio.sleep(0)
        limit(host, 0.05)  # of which it may wait for 20 times, whoever computes
        reason, message = failed(await asking)
        assert reason == "environment_timeout"
        assert "while other episodes in its process computed; let it await what takes long" in message

    in_host(tmp_path, OBEDIENT, play)


def test_who_refuses_to_be_stopped_is_ended(tmp_path: Path) -> None:
    source = (
        OBEDIENT
        + """
async def stubborn():
    while True:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            pass
"""
    )

    async def play(host: EnvironmentHost) -> None:
        await opened(host, "a", "b")
        (process,) = host._processes
        other = asyncio.ensure_future(stepped(host, "b", FOR_EVER))
        while not process._calls:
            await asyncio.sleep(0)
        limit(host, 0.5)
        assert failed(await stepped(host, "a", "stubborn()"))[0] == "environment_timeout"
        assert failed(await other)[0] == "environment_died"

    in_host(tmp_path, source, play)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("os._exit(3)", "exited with status 3"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("ctypes.string_at(0)", "was ended by SIGSEGV"),
        ("bytearray(400 * 2**20) and time.sleep(1e6)", "took over 64 MiB (environment.memory) and was ended"),
    ],
)
def test_who_ends_its_process_is_named(tmp_path: Path, action: str, words: str) -> None:
    async def play(host: EnvironmentHost) -> None:
        await opened(host, "a", "b")
        other = asyncio.ensure_future(stepped(host, "b", FOR_EVER))
        reason, message = failed(await stepped(host, "a", action))
        assert (reason, message) == ("environment_error", f"environment.py: its process {words} during step()")
        assert failed(await other) == ("environment_died", f"environment.py: its process {words}")
        await opened(host, "b")
        assert await stepped(host, "b", DONE) == Step(done=True)

    in_host(tmp_path, OBEDIENT, play, memory=64)


def test_whom_another_prompts_episode_takes_along_is_not_blamed(tmp_path: Path) -> None:
    """At work or not; one of the same prompt is, since its group has failed by its own fault."""

    async def play(host: EnvironmentHost) -> list[tuple[str, bool]]:
        await opened(host, "guilty", "sibling")
        for name in ("at work", "idle"):
            await host.open(name, replace(PROMPT, id=4))
        waiting = [asyncio.ensure_future(stepped(host, name, FOR_EVER)) for name in ("sibling", "at work")]
        guilty = await stepped(host, "guilty", "os._exit(3)")
        ends = [guilty, *await asyncio.gather(*waiting), await stepped(host, "idle", DONE)]
        return [(end.reason, end.blameless) for end in ends if isinstance(end, EnvironmentFailed)]

    died = "environment_died"
    expected = [("environment_error", False), (died, False), (died, True), (died, True)]
    assert in_host(tmp_path, OBEDIENT, play) == expected


def test_where_nobody_computes_anybody_may_be_to_blame(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> EnvironmentFailed | Step:
        (pid,) = await host.ready()
        await opened(host, "a")
        os.kill(pid, signal.SIGKILL)
        return await stepped(host, "a", DONE)

    end = in_host(tmp_path, OBEDIENT, play)
    assert isinstance(end, EnvironmentFailed) and not end.blameless
    assert not pickle.loads(pickle.dumps(end)).blameless
    assert pickle.loads(pickle.dumps(EnvironmentFailed("environment_died", "", blameless=True))).blameless


def test_a_fork_does_not_answer_too(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        await opened(host, "a")
        step = await stepped(host, "a", "Step(observation=str(os.fork()))")
        assert isinstance(step, Step) and step.observation != "0"
        assert await stepped(host, "a", "Step(reward=2)") == Step(reward=2.0)

    in_host(tmp_path, OBEDIENT, play)


def test_what_an_environment_starts_ends_with_its_process(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> int:
        await opened(host, "a")
        start = "Step(observation=str(subprocess.Popen(['sleep', '100000'], start_new_session=True).pid))"
        step = await stepped(host, "a", start)
        assert isinstance(step, Step)
        return int(step.observation)

    pid = in_host(tmp_path, OBEDIENT, play)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_printed_lines_are_handed_on_and_never_block(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> list[str]:
        await opened(host, "a")
        await stepped(host, "a", "print('first') or Step()")
        await stepped(host, "a", "[print('more' * 100) for _ in range(20000)] and Step()")
        await stepped(host, "a", "print('last', file=sys.stderr) or Step()")
        lines = host.printed()
        while "last" not in lines:
            await asyncio.sleep(0.01)
            lines += host.printed()
        return lines

    lines = in_host(tmp_path, OBEDIENT, play)
    assert lines[0] == "first"
    assert any("lines left out" in line for line in lines)


def test_closing_an_episode_stops_it(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        await opened(host, "a", "b")
        stop = "open('stopped', 'w').close()"
        source = f"called(lambda: None) and stopping({stop!r})"
        asking = asyncio.ensure_future(stepped(host, "a", source))
        while await stepped(host, "b", "Step(done=os.path.exists('began'))") != Step(done=True):
            await opened(host, "b") if "b" not in host._episodes else None
        asking.cancel()
        await host.close("a")
        await opened(host, "c")
        while await stepped(host, "c", "Step(observation=str(os.path.exists('stopped')))") != Step(observation="True"):
            pass

    source = (
        OBEDIENT
        + """
async def stopping(then):
    open('began', 'w').close()
    try:
        await asyncio.sleep(1e6)
    finally:
        eval(then)
"""
    )
    in_host(tmp_path, f"import os; os.chdir({str(tmp_path)!r})\n" + source, play)


def test_an_episode_that_is_closed_before_its_process_has_loaded_is_not_left_open(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        opening = asyncio.ensure_future(host.open("a", PROMPT))
        await asyncio.sleep(0)
        await host.close("a")
        with pytest.raises(EnvironmentFailed, match="a was closed before its process had loaded"):
            await opening
        assert host.open_episodes == 0
        await opened(host, "a")

    in_host(tmp_path, OBEDIENT, play)


def test_episodes_that_nobody_asks_are_closed(tmp_path: Path) -> None:
    now = 0.0

    async def play(host: EnvironmentHost) -> None:
        nonlocal now
        await opened(host, "forgotten", "busy", "used")
        busy = asyncio.ensure_future(stepped(host, "busy", FOR_EVER))
        await asyncio.sleep(0)
        now = 60.0
        await stepped(host, "used", "Step()")
        now = 101.0
        await host.sweep()
        assert host.open_episodes == 2
        assert "1 episodes without an action for 100 s were closed" in host.printed()
        message = failed(await stepped(host, "forgotten", DONE))[1]
        assert "it was closed after 100 s without an action" in message
        assert await stepped(host, "used", DONE) == Step(done=True)
        busy.cancel()

    in_host(tmp_path, OBEDIENT, play, clock=lambda: now, idle=100.0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1/0", r"environment\.py does not load: ZeroDivisionError: division by zero \(environment\.py, line 1\)"),
        ("def f(:", r"environment\.py does not load: SyntaxError: invalid syntax \(environment\.py, line 1\)"),
        ("import nothing_like_it", r"does not load: ModuleNotFoundError: No module named 'nothing_like_it' \(environment.py, line 1\)"),
        ("import sys; sys.exit(4)", r"does not load: SystemExit: 4"),
        ("import os; os._exit(4)", r"does not load: its process exited with status 4"),
        ("", r"does not load: \S+environment\.py defines no Environment \(a class with reset and step"),
        ("from dapo_openrlhf.environments.messages import Environment", "defines no Environment"),
        ("class Environment:\n async def reset(self, prompt): ...", r"Environment of \S+ needs two methods"),
        ("class E: ...\nEnvironment = E()", r"Environment of \S+ is one E, which rollouts would share; make it a class"),
        ("Environment = AgentExecutor = int", "defines both Environment and AgentExecutor"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_load_is_said(tmp_path: Path, source: str, words: str) -> None:
    async def play(host: EnvironmentHost) -> None:
        with pytest.raises(EnvironmentUnavailable, match=r"train\.agent_func_path: .*" + words):
            await host.ready()

    in_host(tmp_path, source, play)


def test_a_file_that_loads_for_ever_is_ended(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        with pytest.raises(EnvironmentUnavailable, match=r"environment\.py did not load within 0\.5 s"):
            await host.ready()

    in_host(tmp_path, "import time; print('x' * 10**6); time.sleep(1e6)", play, start_timeout=0.5)


def test_a_function_may_make_the_environments(tmp_path: Path) -> None:
    source = OBEDIENT.replace("class Environment", "class Mine") + "\ndef Environment():\n    return Mine()\n"

    async def play(host: EnvironmentHost) -> None:
        await opened(host, "a", "b")
        await stepped(host, "a", "Step()")
        assert await stepped(host, "b", "Step(reward=len(self.seen))") == Step(reward=1.0)

    in_host(tmp_path, source, play)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def Environment():\n return 3", r"Environment\(\) made 3, which lacks reset\(prompt\) or step\(action\)"),
        ("class Environment:\n def __init__(self, size): ...\n def reset(self, p): ...\n def step(self, a): ...", "TypeError: .*'size'"),
        ("class Environment:\n def reset(self, p): return p.text\n def step(self, a): ...", r"reset\(\) answered .*; it must answer an Obs"),
        ("class Environment:\n def reset(self, p): 1/0\n def step(self, a): ...", r"ZeroDivisionError: .* \(environment\.py, line 2\)"),
        (
            "from dapo_openrlhf.environments.messages import Observation\n"
            "class Environment:\n def reset(self, p): return Observation(text=3)\n def step(self, a): ...",
            r"reset\(\): text is 3; it must be a string",
        ),
    ],
)  # fmt: skip
def test_an_episode_that_cannot_begin_is_an_error(tmp_path: Path, source: str, words: str) -> None:
    async def play(host: EnvironmentHost) -> None:
        for _ in range(2):
            with pytest.raises(EnvironmentFailed, match=words) as error:
                await host.open("a", PROMPT)
            assert error.value.reason == "environment_error"

    in_host(tmp_path, source, play)


def test_garbage_on_the_socket_is_passed_over(tmp_path: Path) -> None:
    write = "[os.write(int(h), b'garbage\\n[1]\\n{}\\n') for h in os.listdir('/proc/self/fd') if 'socket' in link(h)] and Step()"
    source = (
        OBEDIENT
        + """
def link(handle):
    try:
        return os.readlink(f'/proc/self/fd/{handle}')
    except OSError:
        return ''
"""
    )

    async def play(host: EnvironmentHost) -> None:
        await opened(host, "a")
        await stepped(host, "a", write)
        assert await host.step("a", Action(text=DONE, observed="")) == Step(done=True)

    in_host(tmp_path, source, play)
