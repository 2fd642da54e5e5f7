"""The text of the warm-up: correct responses in four styles."""

import random

from arithmetic_model.problems import Problem
from arithmetic_model.recipe import ANSWER, CALL, CALL_END, EOS, RESULT, RESULT_END, Recipe


def write_chain(problem: Problem) -> str:
    """The working as one chain of equations: `8+7=15-5=10`."""
    steps = zip(problem.terms[1:], problem.totals[1:], strict=True)
    return str(problem.terms[0]) + "".join(f"{term:+d}={total}" for term, total in steps)


def write_call(problem: Problem) -> str:
    """A call of the calculator, with the end of the model's turn, and its answer, which the model does not write."""
    return f"{CALL}{problem.prompt.removesuffix('=')}{CALL_END}{EOS}{RESULT}{problem.label}{RESULT_END}"


def write_working(problem: Problem, style: str, recheck_word: str) -> str:
    """What comes before the answer in one of the five styles; empty, or complete lines."""
    if style == "direct":
        return ""
    if style == "tool":
        return write_call(problem)
    if style == "totals":
        return " ".join(map(str, problem.totals[1:])) + "\n"
    chain = write_chain(problem) + "\n"
    return chain + recheck_word + chain if style == "recheck" else chain


def style_shares(recipe: Recipe, step: int) -> dict[str, float]:
    """Weight of each style in the text of a step counted from 1; only their ratios matter."""
    return {
        "direct": recipe.direct_share if step >= recipe.direct_from else 0.0,
        "totals": recipe.totals_share,
        "chain": recipe.chain_share,
        "recheck": recipe.recheck_share,
        "tool": recipe.tool_share,
    }


def write_response(problem: Problem, shares: dict[str, float], rng: random.Random, recheck_word: str = "") -> str:
    """A correct response in a random style, without the end token."""
    (style,) = rng.choices(list(shares), list(shares.values()))
    return f"{write_working(problem, style, recheck_word)}{ANSWER}{problem.label}"


def is_correct(response: str, label: str) -> bool:
    """Whether a complete response (its end token included) ends with the right answer."""
    return response.endswith(EOS) and response.removesuffix(EOS).rpartition(ANSWER)[1:] == (ANSWER, label)
