"""The text of the tool quickstart's warm-up is what the shipped calculator answers, and its answers are not learnt."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

from environment_hosts import PROMPT, in_host, stepped

from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import Step

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
try:
    from arithmetic_model.network import build_tokenizer
    from arithmetic_model.problems import Problem
    from arithmetic_model.recipe import CALL, CALL_END, EOS, RESULT, RESULT_END, Recipe
    from arithmetic_model.text import is_correct, style_shares, write_call, write_response
    from arithmetic_model.warm_up import IGNORED, own_tokens
finally:
    sys.path.pop(0)

RECIPE = Recipe(direct_share=0.0, totals_share=0.0, chain_share=0.0, recheck_share=0.0, tool_share=1.0)
PROBLEM = Problem((8, 7, -5))


def test_the_calculator_answers_as_the_warm_up_says(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> Step:
        await host.open("a", replace(PROMPT, label="2"))
        step = await stepped(host, "a", f"{CALL}8+7-5{CALL_END}")
        assert isinstance(step, Step)
        return step

    step = in_host(tmp_path, (ROOT / "data" / "calculator_environment.py").read_text(), play)
    assert f"{CALL}8+7-5{CALL_END}{EOS}{step.observation}" == write_call(PROBLEM)


def test_a_calls_words_are_tokens_and_its_answer_is_not_learnt() -> None:
    tokenizer = build_tokenizer(RECIPE.vocabulary, RECIPE.max_positions)
    text = write_response(PROBLEM, style_shares(RECIPE, 1), random.Random(0)) + EOS
    assert is_correct(text, "10") and text.startswith(write_call(PROBLEM))
    ids = tokenizer(text)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == [CALL, *"8+7-5", CALL_END, EOS, RESULT, "1", "0", RESULT_END, "Answer: ", "1", "0", EOS]
    labels = own_tokens(ids, tokenizer)
    assert [token for token, label in zip(tokens, labels, strict=True) if label == IGNORED] == [
        RESULT,
        "1",
        "0",
        RESULT_END,
    ]
    assert tokenizer.decode(ids) == text


def test_other_recipes_have_no_word_for_a_tool() -> None:
    recipe = Recipe()
    assert CALL not in recipe.vocabulary and style_shares(recipe, 1)["tool"] == 0.0
    assert own_tokens([5, 6], build_tokenizer(recipe.vocabulary, recipe.max_positions)) == [5, 6]
