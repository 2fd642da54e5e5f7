"""A model's tokenizer, for options that need a chat template or lengths."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.hub import check_name
from dapo_openrlhf.dataset.own_code import refuse_own_code
from dapo_openrlhf.prepare.rows import Message, Problem


class Tokenizer:
    """Renders and counts prompts the way an engine would."""

    def __init__(self, name: str, *, option: str, trust_remote_code: bool = False) -> None:
        """``name``: a folder, or a name on the Hugging Face hub; ``option`` is named in the ``ConfigError``.

        Without ``trust_remote_code`` a tokenizer with Python of its own is refused.
        """
        if not Path(name).exists():
            check_name(option, name, say=lambda words: print(words, file=sys.stderr))
        if not trust_remote_code:
            refuse_own_code(name, setting=option, remedy="--trust-remote-code")
        from transformers import AutoTokenizer  # takes seconds

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            remedy = "give a folder with a tokenizer" if Path(name).exists() else "there is no such folder or name"
            raise ConfigError(f"{option}: no tokenizer in {name!r}; {remedy}: {error}") from error
        self._tokenizer.model_max_length = 10**9  # otherwise it warns of long texts, which are measured here
        self._name = name

    def require_chat_template(self) -> None:
        """Raise ``ConfigError`` if the tokenizer has no chat template."""
        if self._tokenizer.chat_template is None:
            raise ConfigError(
                f"--chat-template: the tokenizer of {self._name} has no chat template; leave the option out"
            )

    def render(self, problem: Problem) -> Problem:
        """The problem with its chat rendered as a single text, up to where the model's answer begins."""
        text: str = self._tokenizer.apply_chat_template(_turns(problem), tokenize=False, add_generation_prompt=True)
        return replace(problem, messages=(Message(role="user", content=text),))

    def count(self, problem: Problem) -> int:
        """Number of tokens of the prompt; a chat list is rendered with the chat template first."""
        text = problem.prompt
        if not isinstance(text, str):
            self.require_chat_template()
            text = self._tokenizer.apply_chat_template(_turns(problem), tokenize=False, add_generation_prompt=True)
        return len(self._tokenizer(text, add_special_tokens=False).input_ids)


def _turns(problem: Problem) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in problem.messages]
