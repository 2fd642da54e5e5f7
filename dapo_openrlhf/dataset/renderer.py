"""Renders a row's prompt as the model sees it: text and token ids, with the model's own tokenizer.

This follows OpenRLHF (``datasets/prompts_dataset.py``, ``utils/agent.py`` of 0.11.2): the text from a chat template, or
the row's own in ``data.input_template``, is tokenized with ``add_special_tokens=False``. So no special token is added
to a text prompt, and special tokens are only where a template, or the row, writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.input_template import input_template
from dapo_openrlhf.dataset.bad_rows import BadRow, Kind
from dapo_openrlhf.dataset.chat import Turn, chat_list, to_be_answered
from dapo_openrlhf.dataset.rows import column, column_names
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.dataset.template import CHANGED, Template, second_beginning
from dapo_openrlhf.rewards.gold import gold_answer

CUT_ANSWER = "end in the assistant's answer, which was cut off"
NO_LABEL = "have no column {!r} ({}), so that their label is None"
OWN_SYSTEM_TURN = "have a system turn of their own, which stays in place of data.system_prompt"
UNKNOWN_TOKEN = "hold what the tokenizer only knows as its unknown token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A row that became a prompt."""

    text: str
    token_ids: Sequence[int]
    label: object
    columns: dict[str, object]
    remarks: tuple[str, ...]
    """Remarks about the row to be counted, from the texts above."""


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A row whose text has not been tokenized yet."""

    text: str
    label: object
    columns: dict[str, object]
    inner: str = ""
    """The row's own text within the template."""
    remarks: list[str] = field(default_factory=list)


class Renderer:
    """Renders rows with a model's tokenizer and checks them against the rules."""

    def __init__(self, rules: RowRules) -> None:
        """Raises ``ConfigError`` if the tokenizer cannot be read, or cannot do what the rules ask of it."""
        self._rules = rules
        self._tokenizer: Any = load_tokenizer(rules.model, trust_remote_code=rules.trust_remote_code)
        self._embedded = embedding_rows(rules.model, trust_remote_code=rules.trust_remote_code)
        self._unknown = self._tokenizer.unk_token_id
        self._wrap = input_template(rules.input_template) if rules.input_template else str
        self._remarks: list[str] = []
        around = (rules.input_template or "").partition("{}")[0]
        if rules.apply_chat_template:
            _check_template(self._tokenizer, rules)
            template = Template(self._rendered, self._system_turn)
            self._remarks += [template.remark] if template.remark else []
            around = template.prompt
        token: str | None = self._tokenizer.bos_token
        self._begins_with = token if token and around.startswith(token) else None
        """The token of the beginning of a text, where what stands around each prompt begins with it."""

    def render(self, rows: Sequence[object]) -> list[Rendered | BadRow]:
        """Render every row; a row that cannot become a prompt gives what is wrong with it."""
        drafts = [self._draft(row) for row in rows]
        texts = [draft.text for draft in drafts if isinstance(draft, _Draft)]
        tokenized = iter(self._tokenize(texts))
        return [draft if isinstance(draft, BadRow) else self._checked(draft, next(tokenized)) for draft in drafts]

    def _draft(self, row: object) -> _Draft | BadRow:
        try:
            if isinstance(row, ConfigError):
                raise BadRow("unreadable", str(row).partition(": ")[2])
            if not isinstance(row, dict):
                raise BadRow("unreadable", f"holds {type(row).__name__}, not a mapping of columns to values")
            rules = self._rules
            columns = {name: value for name, value in row.items() if name not in (rules.input_key, rules.label_key)}
            draft = _Draft(text="", label="", columns=columns, remarks=[*self._remarks])
            self._take_label(draft, row)
            self._write(draft, _present(row, rules.input_key, "prompt", rules.input_setting))
            _check_characters(draft)
        except BadRow as bad:
            return bad
        except RecursionError:
            return BadRow("unreadable", "is nested too deeply")
        return draft

    def _take_label(self, draft: _Draft, row: dict[str, object]) -> None:
        """Set the draft's label."""
        rules = self._rules
        if rules.label_key is None:
            return
        draft.label = column(row, rules.label_key)
        if isinstance(draft.label, bytes):
            raise BadRow(
                "label", f"column {rules.label_key!r} ({rules.label_setting}) holds bytes; give text or a number"
            )
        if not rules.needs_answer:
            if draft.label is None and rules.label_key not in row:
                self._lacks_label(draft, row, rules.label_key)
            return
        try:
            gold_answer(_present(row, rules.label_key, "label", rules.label_setting))
        except ValueError as error:
            raise BadRow("label", f"column {rules.label_key!r} ({rules.label_setting}): {error}") from error

    def _lacks_label(self, draft: _Draft, row: dict[str, object], key: str) -> None:
        if self._rules.may_lack_label:
            draft.remarks.append(NO_LABEL.format(key, self._rules.label_setting))
            return
        raise BadRow(
            "label",
            f"column {key!r} ({self._rules.label_setting}) is missing; it has {column_names(row)}; data.label_key null is for "
            "rewards that need no label",
        )

    def _write(self, draft: _Draft, value: object) -> None:
        """Set the draft's text."""
        chat = chat_list(value)
        if draft.columns.get("images"):
            raise BadRow("prompt", "has images; only text is trained on")
        if self._rules.apply_chat_template:
            turns, cut = to_be_answered(chat or [{"role": "user", "content": value}])
            draft.remarks += [CUT_ANSWER] if cut else []
            turns = self._with_system_prompt(turns, draft)
            draft.inner = "".join(str(turn.get("content", "")) for turn in turns)
            draft.text = self._apply_template(turns)
        elif chat is not None:
            raise BadRow("chat", "the prompt is a chat list, which needs data.apply_chat_template true")
        else:
            draft.inner = str(value)
            draft.text = self._wrap(draft.inner)

    def _with_system_prompt(self, turns: list[Turn], draft: _Draft) -> list[Turn]:
        if self._rules.system_prompt is None:
            return turns
        if turns[0]["role"] in ("system", "developer"):
            draft.remarks.append(OWN_SYSTEM_TURN)
            return turns
        return [*self._system_turn, *turns]

    @property
    def _system_turn(self) -> list[Turn]:
        prompt = self._rules.system_prompt
        return [] if prompt is None else [{"role": "system", "content": prompt}]

    def _apply_template(self, turns: list[Turn]) -> str:
        try:
            return self._rendered(turns, True)
        except Exception as error:  # a template is a program and may raise anything
            words = str(error) or type(error).__name__
            raise BadRow("template", f"the chat template refuses {_roles(turns)}: {words}") from error

    def _rendered(self, turns: list[Turn], answer_begins: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=answer_begins, **self._rules.chat_template_kwargs
        )
        return str(text)

    def _tokenize(self, texts: list[str]) -> list[list[int] | BadRow]:
        if not texts:
            return []
        try:
            return list(self._ids(texts))
        except Exception:  # a tokenizer may raise anything, and does not say for which text
            return [self._tokenize_alone(text) for text in texts]

    def _tokenize_alone(self, text: str) -> list[int] | BadRow:
        try:
            return self._ids([text])[0]
        except Exception as error:  # as above
            return BadRow("tokens", f"the tokenizer refuses it: {type(error).__name__}: {error}")

    def _ids(self, texts: list[str]) -> list[list[int]]:
        made = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        ids: list[list[int]] = made["input_ids"]
        return ids

    def _checked(self, draft: _Draft, ids: list[int] | BadRow) -> Rendered | BadRow:
        if isinstance(ids, BadRow):
            return ids
        if not ids:
            return BadRow("tokens", f"the tokenizer makes no token of {draft.text[:40]!r}")
        if self._embedded is not None and (max(ids) >= self._embedded or min(ids) < 0):
            wrong = next(i for i in ids if not 0 <= i < self._embedded)
            return BadRow(
                "tokens",
                f"{self._tokenizer.convert_ids_to_tokens(wrong)!r} has the id {wrong}, for which the model's embedding has "
                f"no row (vocab_size {self._embedded} in config.json)",
            )
        if len(ids) > self._rules.max_tokens:
            return BadRow(
                "length",
                f"the prompt has {len(ids):,} tokens, {self._rules.max_tokens:,} leave room for a response "
                f"({self._rules.why_max})",
            )
        if self._unknown is not None and self._unknown in ids:
            draft.remarks.append(UNKNOWN_TOKEN)
        elif self._comes_back_changed(draft, ids):
            draft.remarks.append(CHANGED)
        if self._begins_twice(draft, ids):
            draft.remarks.append(second_beginning(self._tokenizer.bos_token))
        return Rendered(
            text=draft.text, token_ids=ids, label=draft.label, columns=draft.columns, remarks=tuple(draft.remarks)
        )

    def _comes_back_changed(self, draft: _Draft, ids: Sequence[int]) -> bool:
        """Whether the tokens are those of another text, which matters to rewards that get texts of prompts with responses."""
        own_reward = not (self._rules.needs_answer or self._rules.may_lack_label)
        return own_reward and bool(self._tokenizer.decode(ids, skip_special_tokens=False) != draft.text)

    def _begins_twice(self, draft: _Draft, ids: Sequence[int]) -> bool:
        """Whether a prompt has the token of the beginning of a text twice, though not one for each of several texts."""
        token = self._tokenizer.bos_token_id
        if token is None or ids[0] != token:
            return False
        spelled = self._begins_with is not None and self._begins_with in draft.inner
        return list(ids[1:2]) == [token] or (spelled and list(ids).count(token) > 1)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or a name on the Hugging Face hub. Raises ``ConfigError``."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # files of any content, and code that came with the model
        raise ConfigError(
            f"actor.model_name_or_path: the tokenizer of {model} cannot be read: {type(error).__name__}: {error}"
        ) from error
    tokenizer.model_max_length = 10**9  # otherwise it warns of long texts, which are measured here
    return tokenizer


def embedding_rows(model: str, *, trust_remote_code: bool = False) -> int | None:
    """Number of rows of the model's embedding by its configuration; None where that does not tell."""
    from transformers import AutoConfig, PretrainedConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        rows = config.get_text_config().vocab_size
    except Exception:  # a kind of model that this transformers does not know, or code that needs torch
        values: dict[str, Any] = PretrainedConfig.get_config_dict(model)[0]
        rows = values.get("vocab_size", values.get("text_config", {}).get("vocab_size"))
    return rows if isinstance(rows, int) else None


def _check_template(tokenizer: Any, rules: RowRules) -> None:
    """Raise ``ConfigError`` without a chat template, or for arguments that the template does not use."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"data.apply_chat_template: the tokenizer of {rules.model} has no chat template; use false, with "
            "data.input_template where text is to stand around each prompt"
        )
    from jinja2 import TemplateSyntaxError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])
    try:
        known = meta.find_undeclared_variables(environment.parse(tokenizer.get_chat_template()))
    except TemplateSyntaxError:
        return  # in a dialect; rendering the rows will show whether it works
    if unknown := sorted(set(rules.chat_template_kwargs) - known):
        raise ConfigError(
            f"data.chat_template_kwargs: the chat template of {rules.model} does not look at {', '.join(unknown)}; it "
            f"looks at {', '.join(sorted(known - {'messages', 'raise_exception', 'strftime_now'}))}"
        )


def _present(row: dict[str, object], key: str, kind: Kind, setting: str) -> object:
    """The value of a column. Raises :class:`BadRow` if there is none, or it is empty."""
    value = column(row, key)
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise BadRow(kind, f"column {key!r} ({setting}) is missing or empty; it has {column_names(row)}")
    return value


def _check_characters(draft: _Draft) -> None:
    for what, text in (("prompt", draft.text), ("label", json.dumps(draft.label, ensure_ascii=False, default=str))):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            broken = error.object[error.start]
            raise BadRow("characters", f"the {what} holds {broken!r}, half of a character") from error


def _roles(turns: list[Turn]) -> str:
    return "a chat of " + ", ".join(str(turn["role"]) for turn in turns[:6]) + (", ..." if len(turns) > 6 else "")
