"""A workload, which every arm and every run of a check is given: a model, prompts, and a reward or an environment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.bench.workload import reward


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A workload in its folder, and what an arm must know about it."""

    folder: Path
    prompt_count: int
    prompt_tokens: int
    """Length of every prompt, in tokens."""
    max_new_tokens: int
    """Longest response, in tokens; all actions together where there is an environment."""
    pass_rate: float
    """Expected share of groups that dynamic sampling keeps."""
    agent: Path | None = None
    """Python file with OpenRLHF's ``AgentExecutor``, which gives the rewards then; None: a rollout is one response."""
    observed_tokens: int = 0
    """Number of tokens that the environment puts between a rollout's actions."""

    @property
    def model(self) -> Path:
        """Folder of the model and its tokenizer."""
        return self.folder / "model"

    @property
    def prompts(self) -> Path:
        """File of JSON lines with ``input`` and ``label``."""
        return self.folder / "prompts.jsonl"

    @property
    def reward(self) -> Path:
        """Python file with ``reward_func``."""
        return Path(reward.__file__)

    @property
    def judge(self) -> tuple[str, Path]:
        """The setting that says what gives the rewards, by the name that it has on both sides, and its file."""
        if self.agent is not None:
            return "train.agent_func_path", self.agent
        return "reward.remote_url", self.reward

    @property
    def max_len(self) -> int:
        """Longest prompt and response together, in tokens, with what an environment says in between."""
        return self.prompt_tokens + self.observed_tokens + self.max_new_tokens


def write_prompts(path: Path, prompts: Iterable[tuple[str, str]]) -> None:
    """Write pairs of prompt and label as JSON lines."""
    rows = (json.dumps({"input": prompt, "label": label}) for prompt, label in prompts)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
