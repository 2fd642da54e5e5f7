"""OpenRLHF's own executor and ours play the same agents against the same scripted engine, token by token."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from environment_hosts import in_host, stepped
from test_episode import STOP, ScriptedEngine

from dapo_openrlhf.backend.engine.episode import Means
from dapo_openrlhf.backend.engine.episode_group import EpisodeGroup
from dapo_openrlhf.backend.engine.rollout_worker import EpisodeRules
from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import EnvironmentFailed, Observation, Step
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.rewards.user_file import load_file
from dapo_openrlhf.types import Prompt

pytestmark = pytest.mark.real

AGENT = """
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

class AgentInstance(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        self.turns = 0

    async def reset(self, states, **kwargs):
        return {"observation": states["observation"] + "!"}

    async def step(self, states, **kwargs):
        self.turns += 1
        action, parameters = states["action_text"], states["sampling_params"]
        if "t" in action:
            parameters.temperature = 0.25
        answer = {
            "rewards": torch.tensor(0.25 * self.turns),
            "environment_feedback": f"[{states['observation_text']} {states['label']}]" * ("q" not in action),
            "done": "d" in action,
            "extra_logs": {"seen": torch.tensor(self.turns)},
        }
        if "s" in action:
            answer["scores"] = torch.tensor(0.75)
        if "p" in action:
            answer["sampling_params"] = parameters
        return answer

class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(AgentInstance)
"""
PROMPT = Prompt(id=0, text="ab", token_ids=(97, 98), label="L")


def ids_of(text: str) -> list[int]:
    """A token a character; ``$`` ends an action."""
    return [STOP if sign == "$" else ord(sign) for sign in text]


class Characters:
    """Both tokenizers: OpenRLHF's is called, ours has coroutines."""

    def __call__(self, *, text: str, add_special_tokens: bool, return_tensors: str) -> dict[str, Any]:
        import torch

        assert (add_special_tokens, return_tensors) == (False, "pt")
        return {"input_ids": torch.tensor([ids_of(text)], dtype=torch.long)}

    async def decode(self, ids: Sequence[int]) -> str:
        return "".join("$" if token == STOP else chr(token) for token in ids)

    async def encode(self, text: str) -> list[int]:
        return ids_of(text)


@dataclass
class StockEngine:
    """Answers OpenRLHF's executor as its engine would, from the same script."""

    script: Sequence[str]
    requests: list[tuple[list[int], float]] = field(default_factory=list)

    async def generate(self, prompt: list[int], parameters: Any, multi_modal_data: object = None) -> Any:
        whole = ids_of(self.script[len(self.requests)])
        self.requests.append(([*prompt], parameters.temperature))
        ids = whole[: parameters.max_tokens]
        logprobs = [{token: SimpleNamespace(logprob=-token / 100)} for token in ids]
        text = "".join(chr(token) for token in ids if token != STOP)
        reason = "length" if len(ids) < len(whole) else "stop"
        output = SimpleNamespace(token_ids=ids, text=text, finish_reason=reason, logprobs=logprobs)
        return SimpleNamespace(outputs=[output])


def play_stock(folder: Path, script: Sequence[str], max_length: int) -> tuple[dict[str, Any], StockEngine]:
    executor = load_file(str(folder / "environment.py"), "stock_agent").AgentExecutor()
    engine = StockEngine(script)
    parameters = SimpleNamespace(max_tokens=1, temperature=1.0, top_p=1.0, logprobs=1)
    result = asyncio.run(executor.execute(PROMPT.text, PROMPT.label, parameters, max_length, Characters(), engine))
    return result, engine


SCRIPTS = [
    ("one turn", ["sd$"], 1000),
    ("three turns", ["hello$", "$", "d$"], 1000),
    ("scores of some turns", ["s$", "more$", "d$"], 1000),
    ("a score at the end", ["a$", "ds$"], 1000),
    ("no feedback", ["q$", "qd$"], 1000),
    ("a temperature, changed in place", ["t$", "x$", "d$"], 1000),
    ("a temperature, answered", ["tp$", "px$", "d$"], 1000),
    ("the context ends within an action", ["hello$", "a very long action$"], 24),
    ("the context ends within feedback", ["hello$", "never asked$"], 12),
    ("an action ends just at the limit", ["hell$", "d$"], 8),
    ("a truncated action is the last", ["a long one with d$"], 8),
]


def test_the_same_agents_play_the_same(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> list[Any]:
        made = []
        for name, script, max_length in SCRIPTS:
            engine = ScriptedEngine({f"{name}/0": [ids_of(text) for text in script]})
            means = Means(actions=engine, texts=Characters(), environments=host, stop_ids=[STOP])
            rules = EpisodeRules(max_turns=50, max_length=max_length, correct_from=1.0)
            group = EpisodeGroup(name, PROMPT, 1, means=means, rules=rules)
            sampling = Sampling(n=1, max_new_tokens=max_length, temperature=1.0, top_p=1.0)
            made.append((await group.play(sampling), engine))
        return made

    for (name, script, max_length), (made, engine) in zip(SCRIPTS, in_host(tmp_path, AGENT, play), strict=True):
        stock, stock_engine = play_stock(tmp_path, script, max_length)
        report, tokens, _ = made
        asked = [(ids, sampling.temperature) for _, ids, sampling in engine.requests]
        assert asked == stock_engine.requests, name
        ids, positions = tokens.context(0)
        end = stock["action_ranges"][-1][1]  # feedback after it is in no model's context
        assert ids.tolist() == stock["observation_tokens"][:end], name
        ranges = [position for begin, end in stock["action_ranges"] for position in range(begin, end)]
        assert positions.tolist() == ranges, name
        stock_logprobs = [stock["rollout_log_probs"][position] for position in ranges]
        assert tokens.rollout_logprobs.tolist() == pytest.approx(stock_logprobs), name
        (score,) = report.scores
        assert (score.reward, score.score) == (stock["reward"], float(stock["scores"])), name
        assert score.logs["seen"] == float(stock["extra_logs"]["seen"]), name
        if "d" in script[len(stock["action_ranges"]) - 1] or stock["truncated"]:
            assert report.truncated == (stock["truncated"],), name


REFUSED = [
    ("class AgentExecutor(MultiTurnAgentExecutor):\n  def __init__(self): ...\n  async def execute(self, *a): ...",
     "has an execute of its own, which would generate outside the staleness bound"),
    ("from openrlhf.utils.agent import SingleTurnAgentExecutor as AgentExecutor", "has an execute of its own"),
    ("AgentExecutor = AgentInstance", "must be a class below OpenRLHF's MultiTurnAgentExecutor"),
    ("AgentExecutor = AgentExecutor()", "must be a class below OpenRLHF's MultiTurnAgentExecutor"),
]  # fmt: skip


def test_what_generates_by_itself_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "loads.py").write_text(AGENT)
    from dapo_openrlhf.environments.openrlhf_agent import agent_environment

    for source, words in REFUSED:
        file = tmp_path / "agent.py"
        file.write_text(AGENT + source)
        with pytest.raises(ImportError, match=words):
            agent_environment(load_file(str(file), "refused").AgentExecutor, str(file))
    sys.modules.pop("refused")


ODD_ANSWERS = """
import torch
from types import SimpleNamespace
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

class Agent(AgentInstanceBase):
    def __init__(self): ...
    async def step(self, states, **kwargs):
        answer = {"rewards": torch.tensor([1.0]), "environment_feedback": "", "done": torch.tensor(False)}
        return eval(states["action_text"])

class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Agent)
"""
ANSWERS = [
    ("answer", Step(reward=1.0)),
    ("answer | {'rewards': 2, 'done': 1}", Step(reward=2.0, done=True)),
    ("answer | {'scores': torch.tensor([[0.5]])}", Step(reward=1.0, score=0.5)),
    ("answer | {'sampling_params': {'max_tokens': 7}}", Step(reward=1.0, max_new_tokens=7)),
    ("answer | {'sampling_params': SimpleNamespace(max_tokens=16, temperature=0.5, top_p=1.0, stop=[])}", Step(reward=1.0, temperature=0.5)),
    ("answer | {'sampling_params': states['sampling_params']}", Step(reward=1.0)),
    ("{'rewards': torch.tensor(1.0), 'environment_feedback': ''}", "step() answered no 'done', only 'rewards', 'environment_feedback'"),
    ("answer | {'done': 'false'}", "step(): done is 'false'; it must be True or False"),
    ("answer | {'done': torch.tensor([True, False])}", "step(): done is tensor([ True, False]); it must be"),
    ("answer | {'environment_feedback': None}", "step(): environment_feedback is None; it must be a string"),
    ("answer | {'environment_images': [1]}", "step() answered 'environment_images'; environments have text only"),
    ("answer | {'rewards': torch.tensor([1.0, 2.0])}", "step(): one response was asked about, 2 rewards were answered"),
    ("answer | {'rewards': torch.tensor(float('nan'))}", "step(): rewards: nan is no finite number"),
    ("answer | {'sampling_params': {'top_k': 5, 'n': 2}}", "step() changes n, top_k of sampling_params; within a rollout only max_tokens and"),
    ("[answer]", "step() answered [{'rewards'"),
]  # fmt: skip


def test_odd_answers_of_agents(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        for text, expected in ANSWERS:
            assert await host.open(text, PROMPT) == Observation()
            step = await stepped(host, text, text, max_new_tokens=100, temperature=1.0, top_p=0.9)
            if isinstance(expected, Step):
                assert step == expected, text
            else:
                assert isinstance(step, EnvironmentFailed) and step.reason == "environment_error", text
                assert str(step).startswith(f"environment.py: {expected}"), str(step)

    in_host(tmp_path, ODD_ANSWERS, play)
