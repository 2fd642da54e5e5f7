"""Supervised learning of the responses."""

import itertools
import random
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from arithmetic_model.muon import Muon
from arithmetic_model.problems import stream_problems
from arithmetic_model.recipe import EOS, RESULT, RESULT_END, Recipe
from arithmetic_model.text import style_shares, write_response

IGNORED = -100
"""Label of positions without loss (prompt and padding), as `torch.nn.functional.cross_entropy` has it."""


def stream_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield endless (input ids, labels), both [batch, positions] int64, padded on the right."""
    rng = random.Random(recipe.seed)
    problems = stream_problems(held_out=False, seed=recipe.seed, min_terms=recipe.min_terms, max_terms=recipe.max_terms)
    for step in itertools.count(1):
        shares = style_shares(recipe, step)
        batch = list(itertools.islice(problems, recipe.batch_size))
        prompts = tokenizer([problem.prompt for problem in batch])["input_ids"]
        texts = [write_response(problem, shares, rng, recipe.recheck_word) + EOS for problem in batch]
        responses = tokenizer(texts)["input_ids"]
        pairs = list(zip(prompts, responses, strict=True))
        inputs = [torch.tensor(prompt + response) for prompt, response in pairs]
        labels = [torch.tensor([IGNORED] * len(prompt) + own_tokens(response, tokenizer)) for prompt, response in pairs]
        yield (
            pad_sequence(inputs, batch_first=True, padding_value=tokenizer.pad_token_id)[:, : recipe.max_text],
            pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, : recipe.max_text],
        )


def own_tokens(response: list[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of a response, with `IGNORED` for a tool's answer, which the model does not write."""
    first, last = (tokenizer.convert_tokens_to_ids(token) for token in (RESULT, RESULT_END))
    if first not in response or last not in response:
        return response
    begin, end = response.index(first), response.index(last) + 1
    return [*response[:begin], *[IGNORED] * (end - begin), *response[end:]]


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step counted from 1."""
    rise = step / recipe.rise_steps
    fall = (recipe.steps - step + 1) / (0.5 * recipe.steps)
    return recipe.learning_rate * min(1.0, rise, fall)


def warm_up(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """Supervised learning of the responses, in place; prints a line about every five seconds."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    muon = Muon(matrices)
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    started = reported = time.monotonic()
    batches = itertools.islice(stream_batches(recipe, tokenizer), recipe.steps)
    for step, (inputs, labels) in enumerate(batches, start=1):
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.param_groups[0]["lr"] = learning_rate_at(step, recipe)
        adamw.step()
        muon.step(learning_rate_at(step, recipe))
        model.zero_grad()
        if time.monotonic() - reported > 5.0 or step == recipe.steps:
            reported = time.monotonic()
            elapsed = reported - started
            print(f"warm-up step {step}/{recipe.steps}  loss {loss:.3f}  {elapsed:.0f} s", flush=True)
