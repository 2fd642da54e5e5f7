"""A tokenizer of characters, for models that are built here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def character_tokenizer(
    vocabulary: Sequence[str], *, pad: str, eos: str, unknown: str, longest: int
) -> PreTrainedTokenizerFast:
    """A tokenizer that adds nothing to a text; tokens of several characters are read as one, but not the three special ones.

    Ids are places in ``vocabulary``, which holds the special tokens; ``longest``: most tokens of a sequence.
    """
    ids = {token: index for index, token in enumerate(vocabulary)}
    words = [re.escape(token) for token in vocabulary if len(token) > 1 and token not in (pad, eos, unknown)]
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*words, r"[\s\S]"])), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=longest,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
