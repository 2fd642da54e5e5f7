"""A model's tokenizer, where a chat template or a length is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dapo_openrlhf.config import ConfigError
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
        """The problem's chat as the one text that the model reads, up to where its answer begins.

        A beginning-of-sequence token that the engine's tokenizer adds to every text is left to it.
        """
        text: str = self._tokenizer.apply_chat_template(_turns(problem), tokenize=False, add_generation_prompt=True)
        begin = self._tokenizer.bos_token
        if (
            begin
            and text.startswith(begin)
            and self._tokenizer(text).input_ids[:2] == [self._tokenizer.bos_token_id] * 2
        ):
            text = text[len(begin) :]
        return Problem(where=problem.where, messages=(Message(role="user", content=text),), label=problem.label)

    def count(self, problem: Problem) -> int:
        """Tokens of the prompt; a chat list is counted through the chat template."""
        if isinstance(problem.prompt, str):
            return len(self._tokenizer(problem.prompt).input_ids)
        self.require_chat_template()
        text = self._tokenizer.apply_chat_template(_turns(problem), tokenize=False, add_generation_prompt=True)
        return len(self._tokenizer(text, add_special_tokens=False).input_ids)


def _turns(problem: Problem) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in problem.messages]
