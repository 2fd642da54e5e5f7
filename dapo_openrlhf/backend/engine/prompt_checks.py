"""Checks that a prompt must pass in any engine, whatever the engine's state (standard library)."""

from __future__ import annotations

from collections.abc import Sequence

from dapo_openrlhf.backend.messages import BadPrompt


def check_prompt(ids: Sequence[int], *, new_tokens: int, vocabulary: int, longest: int) -> None:
    """Refuse a prompt that vLLM's front end would refuse, or that leaves no room for its responses.

    ``vocabulary`` is the number of rows of the model's embedding, ``longest`` the maximum length of prompt and response
    together, in tokens. Raises :class:`BadPrompt`.
    """
    if not ids:
        raise BadPrompt("prompt_empty", "the prompt has no tokens; an engine needs at least one")
    if len(ids) + new_tokens > longest:
        raise BadPrompt(
            "prompt_too_long",
            f"prompt of {len(ids)} tokens and rollout.max_new_tokens {new_tokens} exceed data.max_len {longest}",
        )
    if outside := sorted({token for token in (min(ids), max(ids)) if not 0 <= token < vocabulary}):
        raise BadPrompt(
            "prompt_token_unknown",
            f"token ids {outside} of the prompt have no row in the model's embedding, which has rows 0 to "
            f"{vocabulary - 1}; the tokenizer knows more tokens than the model",
        )
