"""Rollouts with environments, on an engine and environments that are told when to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from dapo_openrlhf.backend.engine.episode import Means
from dapo_openrlhf.backend.engine.episode_group import EpisodeGroup
from dapo_openrlhf.backend.engine.rollout_worker import EpisodeRules
from dapo_openrlhf.backend.engine.unfinished import Made
from dapo_openrlhf.backend.messages import BadPrompt, GenerationReport, GroupTokens, one_version
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Observation, Step
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.types import Prompt, Segment

SAMPLING = Sampling(n=1, max_new_tokens=100, temperature=1.0, top_p=1.0)
PROMPT = Prompt(id=3, text="<q>", token_ids=(1, 2), label=7)
RULES = EpisodeRules(max_turns=5, max_length=1000, correct_from=1.0)
STOP = 9


class LossyTexts:
    """A tokenizer whose round trip changes ids: 40 and 41 are the same letter, and two letters in a row are one token."""

    LETTERS: Mapping[int, str] = {1: "<", 2: "q>", 40: "a", 41: "a", 42: "b", 43: "aa", 44: "ab", STOP: "$"}

    async def decode(self, ids: Sequence[int]) -> str:
        await asyncio.sleep(0)
        return "".join(self.LETTERS[token] for token in ids)

    async def encode(self, text: str) -> list[int]:
        await asyncio.sleep(0)
        ids = []
        while text:
            token = max(
                (t for t, word in self.LETTERS.items() if text.startswith(word)), key=lambda t: len(self.LETTERS[t])
            )
            ids.append(token)
            text = text[len(self.LETTERS[token]) :]
        return ids


@dataclass
class ScriptedEngine:
    """Answers the n-th request of an episode with the n-th action of its script, at once or when it is told."""

    script: Mapping[str, Sequence[Sequence[int]]]
    version: int = 0
    held: bool = False
    """Whether actions wait for :meth:`release`, or a cut."""
    requests: list[tuple[str, list[int], Sampling]] = field(default_factory=list)
    waiting: dict[str, Future[Made]] = field(default_factory=dict)

    def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Made]:
        assert sampling.n == 1 and group_id not in {name for name, _, _ in self.requests}
        self.requests.append((group_id, [*prompt_ids], sampling))
        self.waiting[group_id] = Future()
        future = self.waiting[group_id]
        if not self.held:
            self.release(group_id)
        return future

    def release(self, group_id: str, *, tokens: int | None = None) -> None:
        """End an action, or cut it after some of its tokens."""
        name, turn = group_id.rsplit("/", 1)
        (room,) = (s.max_new_tokens for request, _, s in self.requests if request == group_id)
        whole = self.script[name][int(turn)]
        ids = whole[: room if tokens is None else tokens]
        self.waiting.pop(group_id).set_result(self._made(ids, len(ids) < len(whole), cut=tokens is not None))

    def cut(self, group_id: str) -> None:
        if group_id in self.waiting:
            self.release(group_id, tokens=1)

    def _made(self, ids: Sequence[int], truncated: bool, *, cut: bool) -> Made:
        if not ids:
            return None
        count, version = len(ids), self.version
        report = GenerationReport(
            prompt_length=0, lengths=(count,), truncated=(truncated,), cut=(cut,), oldest_version=version,
            newest_version=version, version_tokens=(count,), cached=(1,),
        )  # fmt: skip
        return report, GroupTokens(
            prompt_ids=np.asarray([], np.int32),
            response_ids=np.asarray(ids, np.int32),
            rollout_logprobs=np.asarray([-token / 100 for token in ids], np.float32),
            offsets=np.asarray([0, count]),
            versions=one_version(version, count),
        )


Answer = Step | Exception | Callable[[], Coroutine[Any, Any, Step]]


@dataclass
class ScriptedEnvironments:
    """Answers the n-th action of an episode with the n-th step of its script."""

    script: Mapping[str, Sequence[Answer]]
    first: Mapping[str, Observation] = field(default_factory=dict)
    open_now: set[str] = field(default_factory=set)
    actions: dict[str, list[Action]] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=list)

    async def open(self, episode: str, prompt: Prompt) -> Observation:
        assert episode not in self.open_now
        await asyncio.sleep(0)
        self.open_now.add(episode)
        self.actions[episode] = []
        self.prompts.append(prompt)
        return self.first.get(episode, Observation())

    async def step(self, episode: str, action: Action) -> Step:
        assert episode in self.open_now
        answer = self.script[episode][len(self.actions[episode])]
        self.actions[episode].append(action)
        if isinstance(answer, Exception):
            self.open_now.remove(episode)
            raise answer
        step = answer if isinstance(answer, Step) else await answer()
        if step.done:
            self.open_now.remove(episode)
        return step

    async def close(self, episode: str) -> None:
        self.open_now.discard(episode)


def group_of(
    engine: ScriptedEngine, environments: ScriptedEnvironments, *, responses: int = 1, rules: EpisodeRules = RULES
) -> EpisodeGroup:
    means = Means(actions=engine, texts=LossyTexts(), environments=environments, stop_ids=[STOP])
    return EpisodeGroup("g", PROMPT, responses, means=means, rules=rules)


def play(engine: ScriptedEngine, environments: ScriptedEnvironments, **settings: Any) -> Any:
    sampling = settings.pop("sampling", SAMPLING)
    made = asyncio.run(group_of(engine, environments, **settings).play(sampling))
    assert not environments.open_now and not engine.waiting, "something is left open"
    return made


async def settled() -> None:
    """Let everything go on until it waits for something from outside."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_the_trainer_gets_the_ids_that_the_engine_saw_and_sampled() -> None:
    """Encoding again would make 43 of 40 41, and 44 of 40 42."""
    engine = ScriptedEngine({"g/0": [[40, 41, STOP], [42]]})
    environments = ScriptedEnvironments(
        {"g/0": [Step(observation="ab", reward=0.5), Step(observation="aa", reward=1.0, score=3.0, done=True)]}
    )
    report, tokens, texts = play(engine, environments)
    assert [ids for _, ids, _ in engine.requests] == [[1, 2], [1, 2, 40, 41, STOP, 44]]
    ids, positions = tokens.context(0)
    assert ids.tolist() == [1, 2, 40, 41, STOP, 44, 42], "and not what came after the last action"
    assert positions.tolist() == [2, 3, 4, 6]
    assert tokens.rollout_logprobs.tolist() == pytest.approx([-0.4, -0.41, -0.09, -0.42])
    assert (report.lengths, report.observed, report.truncated, report.cut) == ((4,), (1,), (False,), (False,))
    (score,) = report.scores
    assert (score.reward, score.score, score.correct) == (1.5, 3.0, True)
    assert [(a.text, a.observed) for a in environments.actions["g/0"]] == [("aa", "<q>"), ("b", "<q>aaab")]
    assert environments.prompts == [PROMPT]
    assert texts.segments == (
        (
            Segment(kind="action", text="aa", tokens=3, reward=0.5),
            Segment(kind="observation", text="ab", tokens=1),
            Segment(kind="action", text="b", tokens=1, reward=1.0),
            Segment(kind="observation", text="aa", tokens=1),
        ),
    )


def test_rewards_are_added_and_the_sum_is_the_score_where_none_is_given() -> None:
    steps = [Step(reward=0.25, logs={"x": 1.0}), Step(reward=0.5, logs={"x": 2.0, "y": 3.0}, done=True)]
    report, _, _ = play(ScriptedEngine({"g/0": [[40], [41]]}), ScriptedEnvironments({"g/0": steps}))
    (score,) = report.scores
    assert (score.reward, score.score, score.correct, score.logs) == (
        0.75,
        0.75,
        False,
        {"turns": 2.0, "kv_reused": 1 / 3, "x": 2.0, "y": 3.0},
    )


def test_versions_are_those_of_each_action_and_the_oldest_counts() -> None:
    engine = ScriptedEngine({"g/0": [[40, 40], [41, STOP], [42]]}, version=4)

    async def published(version: int) -> Step:
        engine.version = version
        return Step(observation="b")

    steps: list[Answer] = [lambda: published(6), lambda: published(7), Step(done=True)]
    report, tokens, _ = play(engine, ScriptedEnvironments({"g/0": steps}))
    assert (report.oldest_version, report.newest_version, report.version_tokens) == (4, 7, (2, 0, 2, 1))
    assert tokens.response_versions(0).per_token().tolist() == [4, 4, 6, 6, 7]


def test_rollouts_that_begin_differently_share_what_they_have_in_common() -> None:
    first = {"g/0": Observation(text="<q>a"), "g/1": Observation(text="<q>b"), "g/2": Observation(text="<q>")}
    engine = ScriptedEngine({f"g/{i}": [[40 + i, STOP]] for i in range(3)})
    environments = ScriptedEnvironments({name: [Step(done=True)] for name in first}, first)
    report, tokens, texts = play(engine, environments, responses=3)
    assert tokens.prompt_ids.tolist() == [1, 2] and report.prompt_length == 2
    assert [tokens.context(i)[0].tolist() for i in range(3)] == [[1, 2, 40, 40, 9], [1, 2, 42, 41, 9], [1, 2, 42, 9]]
    assert report.observed == (1, 1, 0)
    assert texts.segments[1][0] == Segment(kind="observation", text="<q>b", tokens=3)


@pytest.mark.parametrize(
    ("rules", "most", "requests", "room"),
    [
        (replace(RULES, max_turns=2), 100, 2, [100, 98]),
        (RULES, 5, 3, [5, 3, 1]),
        (replace(RULES, max_length=9), 100, 3, [7, 4, 1]),
        (replace(RULES, max_action_tokens=1, max_turns=2), 3, 2, [1, 1]),
    ],
    ids=["turns", "actions", "context", "each action"],
)
def test_a_limit_ends_a_rollout_that_is_then_truncated(
    rules: EpisodeRules, most: int, requests: int, room: list[int]
) -> None:
    engine = ScriptedEngine({"g/0": [[40, 41]] * 9})
    environments = ScriptedEnvironments({"g/0": [Step(observation="b", reward=0.5)] * 9})
    made = play(engine, environments, rules=rules, sampling=replace(SAMPLING, max_new_tokens=most))
    assert made[0].truncated == (True,) and made[0].cut == (False,)
    assert [sampling.max_new_tokens for _, _, sampling in engine.requests] == room[:requests]
    assert len(made[1].context(0)[0]) <= rules.max_length
    assert made[0].scores[0].reward == 0.5 * requests, "also the action that a limit ended was answered"
    assert [action.truncated for action in environments.actions["g/0"]][-1] == (room[-1] == 1)


def test_an_environment_changes_how_the_following_actions_are_sampled() -> None:
    engine = ScriptedEngine({"g/0": [[40], [40], [40]]})
    steps = [Step(max_new_tokens=7, temperature=0.5), Step(), Step(done=True)]
    play(engine, ScriptedEnvironments({"g/0": steps}))
    assert [(s.max_new_tokens, s.temperature) for _, _, s in engine.requests] == [(100, 1.0), (7, 0.5), (7, 0.5)]


@pytest.mark.parametrize("seed", [None, 7])
def test_each_action_of_each_rollout_has_a_seed_of_its_own(seed: int | None) -> None:
    engine = ScriptedEngine({"g/0": [[40], [41]], "g/1": [[40], [41]]})
    environments = ScriptedEnvironments({name: [Step(), Step(done=True)] for name in engine.script})
    play(engine, environments, responses=2, sampling=replace(SAMPLING, seed=seed))
    seeds = {request: sampling.seed for request, _, sampling in engine.requests}
    second = 7 + 2**32
    expected = {"g/0/0": 7, "g/0/1": second, "g/1/0": 8, "g/1/1": second + 1}
    assert seeds == (expected if seed else dict.fromkeys(expected))


@pytest.mark.parametrize(("text", "reason"), [("", "prompt_empty"), ("ab" * 20, "prompt_too_long")])
def test_a_beginning_without_room_for_an_action_is_the_prompt_s_fault(text: str, reason: str) -> None:
    environments = ScriptedEnvironments({}, {"g/0": Observation(text=text)})
    with pytest.raises(BadPrompt) as raised:
        play(ScriptedEngine({}), environments, rules=replace(RULES, max_length=20))
    assert raised.value.reason == reason
    assert not environments.open_now


@pytest.mark.parametrize("bad", [Step(reward=float("nan")), Step(score=float("inf"), done=True)])
def test_a_reward_that_is_no_number_is_an_error_and_never_a_wrong_answer(bad: Step) -> None:
    with pytest.raises(EnvironmentFailed) as raised:
        play(ScriptedEngine({"g/0": [[40]]}), ScriptedEnvironments({"g/0": [bad]}))
    assert raised.value.reason == "environment_error"


def test_a_failure_fails_the_group_ends_its_actions_and_closes_its_environments() -> None:
    """Of four rollouts one fails while the others are in an action, in their environment, and at their end."""
    engine = ScriptedEngine({f"g/{i}": [[40, 40, 40]] for i in range(4)}, held=True)
    forever: Callable[[], Coroutine[Any, Any, Step]] = lambda: asyncio.Event().wait()  # type: ignore[assignment,return-value]  # noqa: E731
    failure = EnvironmentFailed("environment_timeout", "no answer within 30 s")
    environments = ScriptedEnvironments({"g/0": [failure], "g/1": [forever], "g/2": [Step(done=True)], "g/3": []})

    async def main() -> None:
        playing = asyncio.ensure_future(group_of(engine, environments, responses=4).play(SAMPLING))
        await settled()
        for name in ("g/1/0", "g/2/0", "g/0/0"):
            engine.release(name)
        with pytest.raises(EnvironmentFailed, match="within 30 s"):
            await playing

    asyncio.run(main())
    assert not environments.open_now and not engine.waiting


def test_a_cut_ends_each_rollout_after_the_segment_in_progress() -> None:
    """One is in its second action, one in its environment, one has ended, one was ended by a limit."""
    script = {f"g/{i}": [[40, 41, 42], [42, 42, 42]] for i in range(3)} | {"g/3": [[40] * 200]}
    engine = ScriptedEngine(script, held=True)
    forever: Callable[[], Coroutine[Any, Any, Step]] = lambda: asyncio.Event().wait()  # type: ignore[assignment,return-value]  # noqa: E731
    more = Step(observation="b", reward=0.5)
    environments = ScriptedEnvironments(
        {"g/0": [more], "g/1": [forever], "g/2": [Step(reward=2.0, done=True)], "g/3": [more]}
    )

    async def main() -> Any:
        group = group_of(engine, environments, responses=4)
        playing = asyncio.ensure_future(group.play(SAMPLING))
        await settled()
        for name in [*engine.waiting]:
            engine.release(name)
        await settled()
        assert [*engine.waiting] == ["g/0/1"]
        group.cut()
        return await playing

    report, tokens, _ = asyncio.run(main())
    assert report.cut == (True, True, False, False)
    assert report.truncated == (True, True, False, True)
    assert report.lengths == (4, 3, 3, 100)
    assert tokens.context(0)[0].tolist() == [1, 2, 40, 41, 42, 42, 42], "the observation, and one token of the action"
    assert [score.reward for score in report.scores] == [0.5, 0.0, 2.0, 0.5]
    assert not environments.open_now


@pytest.mark.parametrize("held", [False, True])
def test_a_group_of_which_a_rollout_has_no_token_when_it_is_cut_is_not_made(held: bool) -> None:
    engine = ScriptedEngine({"g/0": [[]]}, held=held)

    async def main() -> Any:
        group = group_of(engine, ScriptedEnvironments({"g/0": []}))
        playing = asyncio.ensure_future(group.play(SAMPLING))
        if held:
            await settled()
        group.cut()
        return await playing

    assert asyncio.run(main()) is None
    assert len(engine.requests) == held, "what is cut before it begins asks for no action"
