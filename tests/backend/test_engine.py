"""The engine actor's own part: what happens to a group before and after the engine loop has it. No vLLM."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dapo_openrlhf.backend.engine.actor import EngineActor, TextThread, unheard_ids
from dapo_openrlhf.backend.engine.rollout_worker import RolloutWorker
from dapo_openrlhf.backend.messages import GenerationReport, GroupTexts, GroupTokens, one_version
from dapo_openrlhf.backend.run import remote_engine
from dapo_openrlhf.environments.messages import EnvironmentFailed
from dapo_openrlhf.pipeline.ports import Sampling

SAMPLING = Sampling(n=2, max_new_tokens=10, temperature=1.0, top_p=1.0)


def methods(of: type[Any]) -> dict[str, str]:
    """Public methods of a class itself, with their signatures."""
    return {name: str(inspect.signature(method)) for name, method in vars(of).items() if not name.startswith("_")}


def test_the_actor_has_the_methods_of_a_rollout_worker_and_no_more() -> None:
    """What the controller may call is what another engine has to have."""
    assert methods(EngineActor) == methods(RolloutWorker)


@pytest.mark.parametrize("part", ["remote_engine.py", "start_check.py", "workers.py", "publishers"])
def test_the_controller_calls_no_other(part: str) -> None:
    path = Path(remote_engine.__file__).parent / part
    sources = [file.read_text() for file in (path.glob("*.py") if path.is_dir() else [path])]
    called = {
        name
        for source in sources
        for name in re.findall(r"(?:actor|engine)\.(\w+)(?:\.options\([^)]*\))?\.remote\(", source)
    }
    assert called, "the pattern finds nothing"
    assert called <= methods(RolloutWorker).keys()


class FakeLoop:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Any]:
        self.asked.append((group_id, prompt_ids))
        return Future()

    def cut(self, group_id: str) -> None:
        self.asked.append(f"cut {group_id}")


def make_actor(loop: FakeLoop) -> EngineActor:
    actor = EngineActor.__new__(EngineActor)
    vars(actor).update(_loop=loop, _playing={})
    return actor


def test_the_loop_gets_the_prompts_own_token_ids_and_a_cut_finds_its_group() -> None:
    """A group that the loop does not know when its cut comes would run to its end with nobody waiting for it."""
    loop = FakeLoop()

    async def main() -> None:
        actor = make_actor(loop)
        group = asyncio.create_task(actor.generate("first", (5, 6, 7), SAMPLING))
        await asyncio.sleep(0)
        await actor.cut("first")
        assert loop.asked == [("first", (5, 6, 7)), "cut first"]
        group.cancel()

    asyncio.run(main())


class WordTokenizer:
    """One word a token; 0 is the special ``<eos>``, 9 the special ``Answer: ``."""

    bos_token_id, eos_token_id, pad_token_id = None, 0, 2
    bos_token, eos_token, pad_token = None, "<eos>", "<pad>"

    def batch_decode(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        def word(token: int) -> str:
            special = {0: "<eos>", 9: "Answer: "}
            return f"w{token}" if token not in special else "" if skip_special_tokens else special[token]

        return ["".join(map(word, row)) for row in rows]


def group_tokens(*logprobs: float) -> GroupTokens:
    return GroupTokens(
        prompt_ids=np.asarray([0, 5], np.int32),
        response_ids=np.asarray([7, 0, 8], np.int32),
        rollout_logprobs=np.asarray(logprobs, np.float32),
        offsets=np.asarray([0, 2, 3]),
        versions=one_version(0, 3),
    )


@pytest.mark.parametrize(("wanted", "queries"), [(False, ()), (True, ("<eos>w5w7<eos>", "<eos>w5w8"))])
def test_responses_are_decoded_without_special_tokens_and_queries_with_them(
    wanted: bool, queries: tuple[str, ...]
) -> None:
    actor = make_actor(FakeLoop())
    vars(actor).update(_tokenizer=WordTokenizer(), _decode_queries=wanted, _unheard=[0])
    assert actor._decode(group_tokens(-1, -1, -1)) == GroupTexts(responses=("w7", "w8"), queries=queries)


def test_a_special_token_that_is_part_of_an_answer_is_judged() -> None:
    """Some vocabularies have ``Answer: `` or ``<answer>`` as a special token: without it every response is wrong."""
    tokens = GroupTokens(
        prompt_ids=np.asarray([5], np.int32),
        response_ids=np.asarray([7, 9, 8, 3, 2, 0], np.int32),
        rollout_logprobs=np.zeros(6, np.float32),
        offsets=np.asarray([0, 6]),
        versions=one_version(0, 6),
    )
    actor = make_actor(FakeLoop())
    unheard = unheard_ids(WordTokenizer(), stop_ids=(3,))  # type: ignore[arg-type]
    assert unheard == [0, 2, 3]
    vars(actor).update(_tokenizer=WordTokenizer(), _decode_queries=False, _unheard=unheard)
    assert actor._decode(tokens).responses == ("w7Answer: w8",)


@pytest.mark.parametrize(
    ("pad", "heard"),
    [
        ("!", True),
        ("1", True),
        ("pad", True),
        ("..", True),
        ("<pad>", False),
        ("[PAD]", False),
        ("<｜end▁of▁text｜>", False),
    ],
)
def test_a_word_that_a_tokenizer_pads_with_is_heard(pad: str, heard: bool) -> None:
    """Without it ``5!`` would be judged as 5; a token that ends responses is never heard."""
    tokenizer: Any = SimpleNamespace(
        bos_token=None, bos_token_id=None, eos_token="0", eos_token_id=0, pad_token=pad, pad_token_id=2
    )
    assert unheard_ids(tokenizer, stop_ids=(0,)) == [0] + [2] * (not heard)


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, math.inf])
def test_log_probs_that_are_not_finite_are_the_engine_s_fault(logprob: float) -> None:
    report = GenerationReport(
        prompt_length=2,
        lengths=(2, 1),
        truncated=(False, True),
        cut=(False,) * 2,
        oldest_version=3,
        newest_version=4,
        version_tokens=(2, 1),
    )

    class SickLoop(FakeLoop):
        def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result((report, group_tokens(-1, logprob, -1)))
            return done

    with pytest.raises(ArithmeticError, match=r"1 of 3 log-probs of group 9 are not finite, .* versions 3 to 4"):
        asyncio.run(make_actor(SickLoop()).generate("group 9", (0, 5), SAMPLING))


class Letters:
    """A tokenizer of letters: a is 0."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(ord("a") + token) for token in ids)


def test_an_environment_that_says_what_the_model_cannot_read_is_named() -> None:
    with ThreadPoolExecutor(max_workers=1) as thread:
        texts = TextThread(Letters(), thread, vocabulary=3, environment="game.py")  # type: ignore[arg-type]
        assert asyncio.run(texts.encode("cab")) == [2, 0, 1] and asyncio.run(texts.encode("")) == []
        with pytest.raises(
            EnvironmentFailed, match=r"game\.py: what it says holds 'e', token 4, .* rows 0 to 2"
        ) as failure:
            asyncio.run(texts.encode("bed"))
    assert failure.value.reason == "environment_error"
