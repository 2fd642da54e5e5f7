"""How many problems a model answers right."""

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from arithmetic_model.problems import Problem
from arithmetic_model.recipe import PAD
from arithmetic_model.text import is_correct


def measure_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    sampled: bool,
    max_response: int,
) -> tuple[float, float]:
    """(share of problems answered right, mean response length in tokens), sampled at temperature 1 or greedily."""
    prompts = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt")
    tokens = model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=max_response,
        do_sample=sampled,
    )
    responses = [
        text.removesuffix(PAD * text.count(PAD))
        for text in tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :])
    ]
    right = sum(is_correct(response, problem.label) for response, problem in zip(responses, problems, strict=True))
    length = sum(len(tokenizer.encode(response)) for response in responses) / len(responses)
    return right / len(problems), length
