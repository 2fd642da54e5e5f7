"""Collects the tokens that end a response from all files of a model that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.renderer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "decoder")
"""Keys under which config.json of a model with several parts keeps the part that generates text."""

PROBE = "quite so 7351"
"""An answer that no chat template contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTokens:
    """The tokens that end a response, in training and in evaluation alike."""

    ids: tuple[int, ...]
    """At least one id, in ascending order, each with a row in the model's embedding."""
    notes: tuple[str, ...]
    """Messages for the user: which tokens these are and which files name them, then what was left out."""


def stop_tokens(model: str, *, chat: bool, trust_remote_code: bool = False) -> StopTokens:
    """The union of the tokens that generation_config.json, config.json and the tokenizer name as the end of a text.

    With ``chat`` also the token that ends an answer in the tokenizer's chat template, such as ``<|im_end|>``. Left out
    are ids without a row in the embedding, and the ids of a file that are all ordinary text while another file names a
    special token. Raises :class:`ConfigError` if nothing is left, because no response would ever end.
    """
    from transformers import PretrainedConfig

    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    config, _ = PretrainedConfig.get_config_dict(model)
    stated = {
        "generation_config.json": [_generation_config(model).get("eos_token_id")],
        "config.json": [part.get("eos_token_id") for part in text_parts(config)],
        "tokenizer": [tokenizer.eos_token_id],
    }
    if chat:
        stated["chat template"] = [end_of_turn(tokenizer)]
    rows = max((part["vocab_size"] for part in text_parts(config) if "vocab_size" in part), default=len(tokenizer))
    sources = {source: [i for value in values for i in _ids(value, tokenizer)] for source, values in stated.items()}
    kept, notes = _agree(sources, rows=rows, special=_special(tokenizer))
    by_id: dict[int, list[str]] = {}
    for source, ids in kept.items():
        for token in ids:
            by_id.setdefault(token, []).append(source)
    if not by_id:
        raise ConfigError(
            f"actor.model_name_or_path: no token ends a response of {model}: neither its generation_config.json, its "
            "config.json nor its tokenizer names one that it has; set eos_token in its tokenizer_config.json"
            + "".join(f"; {note}" for note in notes)
        )
    words = ", ".join(
        f"{tokenizer.convert_ids_to_tokens(token)!r} ({token}: {', '.join(by_id[token])})" for token in sorted(by_id)
    )
    return StopTokens(ids=tuple(sorted(by_id)), notes=(f"responses end at {words}", *notes))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that ends an answer in the tokenizer's chat template; None if there is none.

    It is the first special token after an answer, unless answers begin with it, as in templates that open the next turn
    immediately.
    """
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        asked = str(tokenizer.apply_chat_template(turns[:1], tokenize=False))
        prompt = str(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError, TypeError, KeyError):  # templates may refuse any chat, in any way
        return None
    _, found, rest = text.rpartition(PROBE)
    special = _special(tokenizer)
    before, opened, behind = (
        [token for token in tokenizer(part, add_special_tokens=False)["input_ids"] if token in special]
        for part in (asked, prompt, rest if found else "")
    )
    # The special tokens that begin an answer: those by which the prompts differ, or the last one if they do not.
    common = len([*takewhile(lambda pair: pair[0] == pair[1], zip(before, opened, strict=False))])
    opening = opened[-1:] if asked == prompt else opened[common:]
    return next((token for token in behind if token not in opening), None)


def _agree(
    sources: Mapping[str, list[int]], *, rows: int, special: set[int]
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The ids of each source that count, and notes that say why others do not."""
    notes = []
    kept = {source: [token for token in ids if 0 <= token < rows] for source, ids in sources.items()}
    for source, ids in sources.items():
        if outside := sorted({token for token in ids if token >= rows}):
            notes.append(
                f"{source}: eos_token_id {outside} has no row in the model's embedding of {rows}, and is left out"
            )
    if any(special & set(ids) for ids in kept.values()):
        for source, ids in kept.items():
            if ids and not special & set(ids):
                notes.append(
                    f"{source}: eos_token_id {ids} is ordinary text where other files name a special token, and is left "
                    "out; correct the file, or list the special token in it too"
                )
                kept[source] = []
    return kept, tuple(notes)


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of special tokens, which do not occur in ordinary text."""
    return {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}


def text_parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A model's config.json and, recursively, those of its parts that are about text."""
    yield config
    for name in TEXT_CONFIGS:
        if isinstance(part := config.get(name), Mapping):
            yield from text_parts(part)


def _ids(value: object, tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """Ids in the forms that files use: a number, a list, or a token's text; null and negative numbers mean none."""
    match value:
        case bool() | None:
            return
        case int():
            if value >= 0:
                yield value
        case float() if value.is_integer():
            yield from _ids(int(value), tokenizer)
        case str():
            yield from _ids(tokenizer.get_vocab().get(value, int(value) if value.isdecimal() else None), tokenizer)
        case list():
            for each in value:
                yield from _ids(each, tokenizer)


def _generation_config(model: str) -> Mapping[str, Any]:
    """The values of generation_config.json; empty if there is no such file.

    Raises :class:`ConfigError`, also for values with which transformers would not load the model.
    """
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    path = cached_file(
        model,
        "generation_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}; mend it or remove it") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: holds no JSON object; mend it or remove it")
    try:
        GenerationConfig.from_dict(dict(values))
    except (ValueError, TypeError, AttributeError) as error:  # of values of any kind
        raise ConfigError(f"{path}: transformers refuses it: {error}; mend it or remove it") from error
    return values
