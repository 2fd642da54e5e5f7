"""A user's prompts and reward in the forms that stock OpenRLHF takes (transformers for the tokenizer)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dapo_openrlhf.backend.run.inputs import local_model, read_prompts
from dapo_openrlhf.backend.run.model_files import read_model_files
from dapo_openrlhf.bench.stock.terms import Terms, label_of
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.rewards.settings import reward_settings
from dapo_openrlhf.types import Prompt
from dapo_openrlhf.whole_file import whole_file

LOOKED_AT = 64
"""Number of prompts of which it is seen whether the tokenizer gives them back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StockWork:
    """What a configuration trains on, written for OpenRLHF."""

    prompts: Path
    """A file of JSON lines with ``input``, the rendered prompt, and ``label``."""
    count: int
    """Number of its lines."""
    terms: Terms


def write_work(config: Config, folder: Path, *, at_least: int) -> StockWork:
    """Write a configuration's prompts into ``folder``, the set again and again until there are ``at_least`` as many.

    Raises ``ConfigError`` for prompts or a model that cannot be used, and for a tokenizer that does not give prompts back,
    because OpenRLHF hands texts to rewards.
    """
    prompts = read_prompts(config)
    model = local_model(config.actor.model_name_or_path)
    trusted = config.actor.trust_remote_code
    files = read_model_files(model, chat=config.data.apply_chat_template, trust_remote_code=trusted)
    unheard = _unheard(model, files.stop.ids, prompts, trusted=trusted)
    times = -(-at_least // len(prompts))
    file = folder / "prompts.jsonl"
    with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for _ in range(times):
            for prompt in prompts:
                row = {"input": prompt.text, "label": label_of(prompt.label, dict(prompt.columns))}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    terms = Terms(
        settings=reward_settings(config.reward),
        unheard=unheard,
        by_scores=config.algo.dynamic_filtering_range is not None,
    )
    return StockWork(prompts=file, count=times * len(prompts), terms=terms)


def _unheard(model: str, stop: Sequence[int], prompts: Sequence[Prompt], *, trusted: bool) -> tuple[str, ...]:
    """Texts of the tokens that rewards do not see."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trusted)
    for prompt in islice(prompts, LOOKED_AT):
        back = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
        if back != prompt.text:
            raise ConfigError(
                f"{prompt.name}: the tokenizer of {model} does not give it back ({back!r}), and OpenRLHF's rewards find a "
                "response behind the prompt's text; such a tokenizer cannot be compared"
            )
    around = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    ids = sorted({*stop, *(token for token in around if token is not None)})
    return tuple(tokenizer.decode([token], skip_special_tokens=False) for token in ids)
