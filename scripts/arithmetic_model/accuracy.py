"""How many problems a model answers right."""

import re

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from arithmetic_model.problems import Problem
from arithmetic_model.recipe import CALL, CALL_END, EOS, PAD, RESULT, RESULT_END
from arithmetic_model.text import is_correct


def measure_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    sampled: bool,
    max_response: int,
) -> tuple[float, float]:
    """(share of problems answered right, mean response length in tokens), sampled at temperature 1 or greedily.

    A response that ends with a call of the calculator goes on after its answer, once.
    """
    prompts = [problem.prompt for problem in problems]
    responses = _respond(model, tokenizer, prompts, sampled=sampled, max_response=max_response)
    calls = [index for index, response in enumerate(responses) if response.endswith(CALL_END + EOS)]
    for index in calls:
        responses[index] += f"{RESULT}{_calculate(responses[index])}{RESULT_END}"
    if calls:
        texts = [prompts[index] + responses[index] for index in calls]
        last = _respond(model, tokenizer, texts, sampled=sampled, max_response=max_response)
        for index, response in zip(calls, last, strict=True):
            responses[index] += response
    right = sum(is_correct(response, problem.label) for response, problem in zip(responses, problems, strict=True))
    length = sum(len(tokenizer.encode(response)) for response in responses) / len(responses)
    return right / len(problems), length


def _calculate(response: str) -> str:
    expression = response.rpartition(CALL)[2].removesuffix(CALL_END + EOS)
    terms = re.findall(r"[+-]?\d+", expression)
    return str(sum(map(int, terms))) if "".join(terms) == expression else "error"


def _respond(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    *,
    sampled: bool,
    max_response: int,
) -> list[str]:
    prompts = tokenizer(texts, padding=True, return_tensors="pt")
    tokens = model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=max_response,
        do_sample=sampled,
    )
    return [
        text.removesuffix(PAD * text.count(PAD))
        for text in tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :])
    ]
