"""A model's tokenizer, where a chat template or a length is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.prepare.rows import Message, Problem


class Tokenizer:
    """Renders and counts prompts the way an engine would."""

    def __init__(self, name: str, *, option: str) -> None:
        """``name``: a folder, or a name on the Hugging Face hub; ``option`` is named in the ``ConfigError``."""
        from transformers import AutoTokenizer  # takes seconds

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            remedy = "give a folder with a tokenizer" if Path(name).exists() else "there is no such folder or name"
            raise ConfigError(f"{option}: no tokenizer in {name!r}; {remedy}: {error}") from error
        self._tokenizer.model_max_length = 10**9  # it would warn of texts that are here to be measured
        self._name = name

    def require_chat_template(self) -> None:
        """Raises ``ConfigError`` if the tokenizer has none."""
        if self._tokenizer.chat_template is None:
            raise ConfigError(
                f"--chat-template: the tokenizer of {self._name} has no chat template; leave the option out"
            )

    def render(self, problem: Problem) -> Problem:
        """The problem's chat as the one text that the model reads, up to where its answer begins."""
        text: str = self._tokenizer.apply_chat_template(_turns(problem), tokenize=False, add_generation_prompt=True)
        return replace(problem, messages=(Message(role="user", content=text),))

    def count(self, problem: Problem) -> int:
        """Tokens of the prompt; a chat list is counted through the chat template."""
        text = problem.prompt
        if not isinstance(text, str):
            self.require_chat_template()
            text = self._tokenizer.apply_chat_template(_turns(problem), tokenize=False, add_generation_prompt=True)
        return len(self._tokenizer(text, add_special_tokens=False).input_ids)


def _turns(problem: Problem) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in problem.messages]
