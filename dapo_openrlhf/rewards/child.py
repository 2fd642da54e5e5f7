"""The process in which rewards are computed on request (``process.py`` starts it with ``python -m``).

It reads lines of JSON from a socket, each with one or several responses to a prompt, and answers each with one line. It
sets its own limits; its owner enforces the deadline, and ``guard.py`` ends what the rewards start.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import socket
import sys
import threading
import traceback
from io import BufferedRWPair
from typing import cast

from dapo_openrlhf.config.reward_origin import Rule
from dapo_openrlhf.rewards import guard, verifier
from dapo_openrlhf.rewards.failures import ServerAway, ServerLate, SourceFailed, Undecided
from dapo_openrlhf.rewards.printed import flush_output
from dapo_openrlhf.rewards.question import Question, RewardSource
from dapo_openrlhf.rewards.replies import BadReply
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.rewards.sources import WeightedReward, open_source
from dapo_openrlhf.types import Score

LONGEST_MESSAGE = 300
LONGEST_ANSWER = 300
"""Most characters of an answer that are passed on, for majorities and files of responses."""
MEBIBYTE = 1 << 20
HEADROOM = 1024
"""MiB between the limit that the parent watches and the hard limit, which stops what grows faster than the parent
looks."""


def main(handle: int, settings: RewardSettings) -> None:
    """Answer requests until the parent closes the socket."""
    threading.Thread(target=guard.end_with_owner, args=(handle,), daemon=True).start()
    sys.set_int_max_str_digits(0)  # its ValueError would look like an odd expression; time is limited anyway
    process = os.getpid()
    os.set_inheritable(handle, False)
    with socket.socket(fileno=handle) as connection, connection.makefile("rwb") as lines:
        try:
            reward = _open(settings)
        except Exception as error:  # a user's file may raise anything; it is reported, and nothing is scored with it
            _send(lines, {"request": 0, "error": _explain(error)})
            return
        if all(
            isinstance(source, Rule) for source in settings.sources
        ):  # a user's libraries may map far more than they use: CUDA's do
            _limit_memory((settings.memory + HEADROOM) * MEBIBYTE)
        _send(lines, {"request": 0, "pid": process})
        for line in lines:
            request = json.loads(line)
            question = Question(**request["question"])
            _limit_cpu(settings.timeout * len(question))
            answer = _answer(reward, question)
            flush_output()
            if os.getpid() != process:
                os._exit(0)  # a process that the reward forked: it must not answer too
            _send(lines, {"request": request["request"], **answer})


def _open(settings: RewardSettings) -> RewardSource:
    names = [source.short_name for source in settings.sources]
    return WeightedReward(names, [open_source(source, settings) for source in settings.sources], settings.weights)


def _answer(reward: RewardSource, question: Question) -> dict[str, object]:
    """The scores of all responses; with an error, those of the responses before the one that the error is about."""
    try:
        scores = reward(question)
        responses = zip(scores, question.responses, strict=True)
        return {"scores": [_plain(score, response, question.prompt) for score, response in responses]}
    except MemoryError as error:
        return {"scores": [], "error": _explain(error), "spent": True}  # the heap may be in any state
    except (Exception, Undecided) as error:  # a user's function may raise anything
        away = isinstance(error.__cause__, ServerAway)
        if len(question) > 1 and not away:
            return _one_by_one(reward, question, error)
        spent = isinstance(error.__cause__, MemoryError)
        late = away and isinstance(error.__cause__, ServerLate)
        return {"scores": [], "error": _explain(error), "spent": spent, "away": away, "timed_out": late}


def _one_by_one(reward: RewardSource, question: Question, error: BaseException) -> dict[str, object]:
    """Find which of several responses an error is about; the first, if it occurs only when they are scored together."""
    scores: list[object] = []
    for response, query in zip(question.responses, question.queries, strict=True):
        answer = _answer(reward, dataclasses.replace(question, responses=[response], queries=[query]))
        if "error" in answer:
            return answer | {"scores": scores}
        scores += cast("list[object]", answer["scores"])
    words = f"{_explain(error)}; of each response alone it says nothing: is it for one at a time? (reward.batch_size 1)"
    return {"scores": [], "error": words}


def _plain(score: Score, response: str, prompt: str) -> dict[str, object]:
    answer = verifier.extract_answer(response, prompt)
    return {
        "correct": bool(score.correct),
        "reward": score.reward,
        "score": score.score,
        "logs": dict(score.logs),
        "answer": None if answer is None else verifier.answer_key(answer)[:LONGEST_ANSWER],
    }


def _explain(error: BaseException) -> str:
    """Kind, message and place of an exception, short and printable."""
    name, error = (
        (f"{error}: ", error.__cause__) if isinstance(error, SourceFailed) and error.__cause__ else ("", error)
    )
    words = str(error)[:LONGEST_MESSAGE]
    if not isinstance(error, Undecided | BadReply | ServerAway):
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
        words = f"{type(error).__name__}: {words}{place}"
    return name + "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)


def _send(lines: BufferedRWPair, message: dict[str, object]) -> None:
    lines.write(json.dumps(message).encode() + b"\n")
    lines.flush()


def _limit_memory(more: int) -> None:
    """Allow ``more`` bytes of address space beyond what is mapped now, with everything loaded."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))


def _limit_cpu(timeout: float) -> None:
    """End this process when it has computed for longer than any response may take, in case its parent is gone."""
    times = os.times()
    most = math.ceil(times.user + times.system + (timeout + 1) * (os.cpu_count() or 1))
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard.fork_guarded(int(sys.argv[1]))
    main(int(sys.argv[1]), RewardSettings.from_json(sys.argv[2]))
