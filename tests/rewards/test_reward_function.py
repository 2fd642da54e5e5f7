"""A user's ``reward_func``: what it is given, what it may answer, and what becomes of one that misbehaves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dapo_openrlhf.config.reward_origin import PythonFile
from dapo_openrlhf.rewards.function import FunctionReward, load_function
from dapo_openrlhf.rewards.printed import FIRST_LINES, LAST_LINES, Limited
from dapo_openrlhf.rewards.process import RewardProcess, RewardUnavailable, Scored, score_group
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.replies import BadReply, read_reply
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.types import Score

pytestmark = pytest.mark.long

QUESTION = Question(
    responses=["5", "6"],
    queries=["<|im_start|>2+3=<|im_end|>5<|im_end|>", "<|im_start|>2+3=<|im_end|>6<|im_end|>"],
    prompt="<|im_start|>2+3=<|im_end|>",
    label={"answer": 5, "level": [1, 2]},
    columns={"source": "school", "difficulty": 2},
)


def reward(source: str) -> FunctionReward:
    scope: dict[str, object] = {}
    exec(source, scope)
    function = scope["reward_func"]
    assert callable(function)
    return FunctionReward(function, correct_from=1.0)


def judged(
    folder: Path, source: str, question: Question = QUESTION, **settings: object
) -> tuple[list[Scored], RewardProcess]:
    (folder / "mine.py").write_text(source)
    options = {"timeout": 20.0, **settings}
    with RewardProcess(RewardSettings(sources=(PythonFile(str(folder / "mine.py")),), **options)) as process:  # type: ignore[arg-type]
        return list(score_group(process, question, at_once=process._settings.batch_size or len(question))), process


# -------------------------------------------------------------------------------------------- what it is given


def test_it_sees_rendered_texts_and_the_row_s_own_label(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    source = (
        "import json\n"
        "def reward_func(queries, prompts, labels):\n"
        f"    open({str(seen)!r}, 'a').write(json.dumps([queries, prompts, labels]) + '\\n')\n"
        "    return {'rewards': [float(q.endswith('5<|im_end|>')) for q in queries]}\n"
    )
    scored, _ = judged(tmp_path, source)
    assert [scored.score for scored in scored] == [
        Score(correct=True, reward=1.0), Score(correct=False, reward=0.0),
    ]  # fmt: skip
    # One response a call, as OpenRLHF 0.11.2 does.
    calls = [json.loads(line) for line in seen.read_text().splitlines()]
    assert calls == [[[query], [QUESTION.prompt], [QUESTION.label]] for query in QUESTION.queries]
    seen.unlink()
    judged(tmp_path, source, batch_size=None)
    assert json.loads(seen.read_text()) == [list(QUESTION.queries), [QUESTION.prompt] * 2, [QUESTION.label] * 2]


@pytest.mark.parametrize(
    ("parameters", "given"),
    [
        ("queries, prompts, labels, **kwargs", {"source": ["school"] * 2, "difficulty": [2, 2]}),
        ("q, p, l, **columns", {"source": ["school"] * 2, "difficulty": [2, 2]}),
        ("queries, prompts, labels, difficulty", {"difficulty": [2, 2]}),
        ("queries, prompts, labels, *, source, nothing=None", {"source": ["school"] * 2, "nothing": None}),
        ("queries, prompts, labels, responses", {"responses": ["5", "6"]}),
        ("*args", {}),
        ("queries, prompts, labels", {}),
    ],
)
def test_columns_go_to_who_asks_for_them(parameters: str, given: dict[str, object]) -> None:
    source = (
        f"def reward_func({parameters}):\n    seen.update(locals())\n    return {{'rewards': [0, 1]}}\nseen = {{}}\n"
    )
    scope: dict[str, object] = {}
    exec(source, scope)
    function = scope["reward_func"]
    assert callable(function)
    FunctionReward(function, correct_from=1.0)(QUESTION)
    seen = dict(scope["seen"])  # type: ignore[call-overload]
    for name in ("kwargs", "columns"):
        seen |= seen.pop(name, {})
    for name in ("queries", "prompts", "labels", "q", "p", "l", "args"):
        seen.pop(name, None)
    assert seen == given


def test_a_column_that_no_row_has_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"wants level, which is no column of the row; it has \['difficulty', 'source'\]"
    ):
        reward("def reward_func(queries, prompts, labels, level): return {'rewards': 1}")(QUESTION)


@pytest.mark.parametrize(
    "source",
    [
        "async def reward_func(queries, prompts, labels):\n    await asyncio.sleep(0)\n    return {'rewards': [1.0, 0.5]}",
        "class Reward:\n    async def __call__(self, queries, prompts, labels, **kwargs):\n        return {'rewards': [1.0, 0.5]}\nreward_func = Reward()",
        "class Reward:\n    def __call__(self, queries, prompts, labels):\n        return {'rewards': [1.0, 0.5]}\nreward_func = Reward()",
        "import functools\ndef f(k, queries, prompts, labels): return {'rewards': [k, 0.5]}\nreward_func = functools.partial(f, 1.0)",
    ],
    ids=["async def", "async object", "object", "partial"],
)  # fmt: skip
def test_functions_of_all_kinds(source: str) -> None:
    assert [score.reward for score in reward("import asyncio\n" + source)(QUESTION)] == [1.0, 0.5]


def test_an_async_function_keeps_its_event_loop() -> None:
    source = (
        "import asyncio\n"
        "loops = []\n"
        "async def reward_func(queries, prompts, labels):\n"
        "    loops.append(asyncio.get_running_loop())\n"
        "    return {'rewards': [float(loops[0] is loops[-1])] * 2}\n"
    )
    function = reward(source)
    assert [score.reward for _ in range(2) for score in function(QUESTION)] == [1.0] * 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class reward_func: pass", "is a class; make an instance of it: reward_func = reward_func()"),
        ("def reward_func(query, label): pass", r"reward_func(query, label) takes too few arguments"),
        ("reward_func = 3", "defines no reward_func"),
    ],
)
def test_what_is_no_such_function_is_refused_at_start(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ImportError) as raised:
        FunctionReward(load_function(str(tmp_path / "mine.py")), correct_from=1.0)
    assert words in str(raised.value)


# ------------------------------------------------------------------------------------------ what it may answer


def arrays() -> list[Callable[[list[float]], object]]:
    import numpy as np
    import torch

    return [
        list, tuple, np.array, lambda v: np.array(v)[:, None], lambda v: np.array(v, np.float16),
        torch.tensor, lambda v: torch.tensor(v).bfloat16(), lambda v: torch.tensor([v]), lambda v: [torch.tensor(x) for x in v],
        lambda v: [np.float32(x) for x in v], lambda v: torch.tensor(v, requires_grad=True),
    ]  # fmt: skip


@pytest.mark.parametrize("form", arrays())
def test_numbers_of_all_forms(form: Callable[[list[float]], object]) -> None:
    reply = {"rewards": form([1.5, -2.0]), "scores": form([0.0, 1.0]), "extra_logs": {"length": form([3.0, 4.0])}}
    assert read_reply(reply, 1.0, 2) == [
        Score(correct=False, reward=1.5, score=0.0, logs={"length": 3.0}),
        Score(correct=True, reward=-2.0, score=1.0, logs={"length": 4.0}),
    ]


def test_what_cannot_be_logged_is_left_out() -> None:
    logs = {"one": 2.0, "both": [1, 2], "nan": float("nan"), "text": "x", "three": [1, 2, 3], 4: True}
    scores = read_reply({"rewards": [0, 0], "extra_logs": logs}, 1.0, 2)
    assert [dict(score.logs) for score in scores] == [
        {"one": 2.0, "both": 1.0, "4": 1.0},
        {"one": 2.0, "both": 2.0, "4": 1.0},
    ]
    assert read_reply({"rewards": 1, "extra_logs": ["x"]}, 1.0)[0].logs == {}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "answered None, not a mapping with 'rewards'"),
        ([1.0, 1.0], "not a mapping with 'rewards'"),
        ({"scores": [1, 1]}, "not a mapping with 'rewards'"),
        ({"rewards": [1.0]}, "2 responses were asked about, 1 rewards were answered"),
        ({"rewards": 1.0}, "2 responses were asked about, 1 rewards were answered"),
        ({"rewards": [1.0] * 3}, "3 rewards were answered"),
        ({"rewards": [1.0, 2.0], "scores": [1.0]}, "1 scores were answered"),
        ({"rewards": [1.0, None]}, "rewards: None is no number"),
        ({"rewards": ["1.0", "2.0"]}, "rewards: '1.0' is no number"),
        ({"rewards": [1.0, 1j]}, "1j is no number"),
        ({"rewards": {"a": 1.0}}, "is no number"),
        ({"rewards": bytearray(b"12")}, "is no number"),
        ({"rewards": memoryview(b"12")}, "is no number"),
        ({"rewards": [1.0, float("nan")]}, "rewards: nan is no finite number"),
        ({"rewards": [1.0, float("inf")]}, "the reward inf is no finite number"),
        ({"rewards": [1e39, 1.0]}, "the reward 1e+39 is beyond what a reward may be, 1e+06 either way"),
        ({"rewards": [0.0, -1000001.0]}, "-1e+06 is beyond"),
        ({"rewards": [1.0, 10**400]}, "is no number"),
        ({"rewards": [1.0, 1.0], "scores": [1.0, float("nan")]}, "scores: nan is no finite number"),
    ],
)  # fmt: skip
def test_other_replies_say_what_is_wrong_with_them(reply: object, words: str) -> None:
    with pytest.raises(BadReply) as raised:
        read_reply(reply, 1.0, 2)
    assert words in str(raised.value)


def test_the_largest_reward_is_one() -> None:
    assert read_reply({"rewards": [1e6, -1e6]}, 1.0, 2)[1].reward == -1e6


# ------------------------------------------------------------------------------------------------ misbehaviour

HOSTILE = """
import os, sys
def reward_func(queries, prompts, labels):
    what = labels[0]
    if what == "nan": return {"rewards": float("nan")}
    if what == "huge": return {"rewards": 1e39}
    if what == "text": return {"rewards": "1"}
    if what == "exit": raise SystemExit(5)
    if what == "interrupt": raise KeyboardInterrupt
    if what == "stop": raise StopIteration
    if what == "cuda":
        import torch
        return {"rewards": torch.ones(1, device="cuda")}
    if what == "second" and queries[-1].endswith("6<|im_end|>"): raise ValueError("no sixes")
    if what == "together" and len(queries) > 1: raise ValueError("only one")
    if what == "print": sys.stdout.write("x" * 99 + "\\n")
    if what == "flood":
        for _ in range(1000): sys.stdout.write("y" * 99 + "\\n"); sys.stderr.write("z" * 99 + "\\n")
    if what == "megabytes":
        for _ in range(100): os.write(1, b"w" * (1 << 20))
    return {"rewards": [0.5] * len(queries)}
"""


def labelled(label: str) -> Question:
    return Question(responses=QUESTION.responses, queries=QUESTION.queries, prompt=QUESTION.prompt, label=label)


@pytest.mark.parametrize(
    ("label", "words", "reason"),
    [
        ("nan", "mine.py: rewards: nan is no finite number", "reward_error"),
        ("huge", "mine.py: the reward 1e+39 is beyond", "reward_error"),
        ("text", "mine.py: rewards: '1' is no number", "reward_error"),
        ("stop", "mine.py: StopIteration", "reward_error"),
        ("cuda", "mine.py: ", "reward_error"),
        ("exit", "mine.py: the reward process exited with status 5", "reward_died"),
        ("interrupt", "mine.py: the reward process ", "reward_died"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, None])
def test_it_is_an_error_that_names_the_reward(
    tmp_path: Path, label: str, words: str, reason: str, batch_size: int | None
) -> None:
    scored, _ = judged(tmp_path, HOSTILE, labelled(label), batch_size=batch_size)
    assert [(scored.score, scored.reason) for scored in scored] == [(None, reason)]
    assert str(scored[0].error).startswith(words)


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_an_error_of_a_whole_group_is_laid_at_one_response_s_door(tmp_path: Path, batch_size: int | None) -> None:
    first, second = judged(tmp_path, HOSTILE, labelled("second"), batch_size=batch_size)[0]
    assert first.score == Score(correct=False, reward=0.5)
    assert str(second.error).startswith("mine.py: ValueError: no sixes (mine.py, line")


def test_a_function_for_one_response_says_so_when_it_gets_more(tmp_path: Path) -> None:
    (scored,) = judged(tmp_path, HOSTILE, labelled("together"), batch_size=None)[0]
    assert "ValueError: only one" in str(scored.error) and "reward.batch_size 1" in str(scored.error)


def test_what_it_prints_comes_in_lines_and_not_too_many(tmp_path: Path) -> None:
    scored, process = judged(tmp_path, HOSTILE, labelled("print"))
    assert len(scored) == 2 and process.printed() == ["x" * 99] * 2
    scored, process = judged(tmp_path, HOSTILE, labelled("flood"))
    lines = process.printed()
    assert len(scored) == 2 and len(lines) == FIRST_LINES + 1 + LAST_LINES
    assert lines[FIRST_LINES] == f"... {2 * 2000 - FIRST_LINES - LAST_LINES} lines left out ..."
    scored, process = judged(tmp_path, HOSTILE, labelled("megabytes"))
    assert [scored.reason for scored in scored] == ["judged"] * 2
    assert sum(map(len, process.printed())) < 20_000


def test_what_it_prints_while_loading_is_heard_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('loading \\x1b[1m'); raise ValueError('no model')\n")
    with RewardProcess(RewardSettings(sources=(PythonFile(str(tmp_path / "mine.py")),))) as process:
        with pytest.raises(RewardUnavailable, match="no model"):
            process.wait_ready()
        assert process.printed() == ["loading \\x1b[1m"]


def test_lines_are_passed_on_at_a_bounded_rate() -> None:
    said: list[str] = []
    clock = itertools.count()
    limited = Limited(said.append, lambda: next(clock) / 10, most=2, seconds=1.0)
    for number in range(12):
        limited(str(number))
    assert said[:2] == ["reward: 0", "reward: 1"]
    assert said[2].startswith("reward: ... ") and "more lines were left out" in said[2]
    assert len(said) <= 6
