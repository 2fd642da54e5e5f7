"""Faults of prompts that no error tells; looks for them in what a chat template makes of a chat (standard library)."""

from __future__ import annotations

from collections.abc import Callable

from dapo_openrlhf.dataset.chat import Turn

SECOND_BEGINNING = "have the token of the beginning of a text a second time"
NO_ANSWER_BEGUN = "end without the beginning of an answer"
CHANGED = (
    "come back from the tokenizer as another text, so that queries do not begin with their prompts: a reward that cuts prompts off "
    "would cut in a wrong place; let it take `responses`"
)
WARNINGS = (SECOND_BEGINNING, NO_ANSWER_BEGUN, CHANGED)
"""How the remarks about a prompt begin that are warnings."""

QUESTION, ANSWER = "qzfwkh", "xvbtjm"
"""Texts that no template has, and that none changes by trimming them."""

Render = Callable[[list[Turn], bool], str]
"""Renders a chat; the second argument is ``add_generation_prompt``."""


class Template:
    """What is known of a chat template from two short chats."""

    def __init__(self, render: Render, system: list[Turn]) -> None:
        """``system``: the turns that every chat begins with. ``render`` may raise what templates raise, which is anything."""
        asked: list[Turn] = [*system, {"role": "user", "content": QUESTION}]
        self.prompt = self._not_begun = self._answered = ""
        try:
            self.prompt = render(asked, True)
            self._not_begun = render(asked, False)
            self._answered = render([*asked, {"role": "assistant", "content": ANSWER}], False)
        except Exception:  # of chats that it does not take; the rows will show whether it takes those
            return

    @property
    def remark(self) -> str | None:
        """A remark where prompts lack what stands between question and answer, and ``add_generation_prompt`` changes nothing.

        None also where that cannot be told, as of a template that leaves one of the two out. Templates that begin an answer
        otherwise than they write a finished one, as those do that let the model think, are right.
        """
        begun, not_begun = (_after(QUESTION, text) for text in (self.prompt, self._not_begun))
        before_answer, found, _ = self._answered.partition(ANSWER)
        between = _after(QUESTION, before_answer)
        if None in (begun, not_begun, between) or not found or begun != not_begun or begun == between:
            return None
        return (
            f"{NO_ANSWER_BEGUN}: the chat template does not look at add_generation_prompt, and writes {between!r} between "
            f"question and answer, of which the prompts have {begun!r}; mend it (chat_template.jinja, or chat_template in "
            "tokenizer_config.json), or write prompts with data.input_template"
        )


def second_beginning(token: str) -> str:
    """The remark for prompts that hold the token a second time."""
    return (
        f"{SECOND_BEGINNING}, {token!r}: what stands around the prompt writes it (chat template, data.input_template or "
        "tokenizer), and the row's text or data.system_prompt does too; leave it out of one of them"
    )


def _after(mark: str, text: str) -> str | None:
    """What follows the last of the marks in a text, without blanks around it; None without one."""
    _, found, rest = text.rpartition(mark)
    return rest.strip() if found else None
