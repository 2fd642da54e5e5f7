"""The text of the comparison: responses that vary in length like reasoning, and prompts with a known pass rate.

A prompt ends with the mark of its category. Each category has letters and an end-of-sequence hazard of its own, so a
response's length is geometric around its category's mean: a group's lengths are alike, and all lengths together have a
heavy tail. The label says whether all, none or about half of a prompt's responses are right (see ``reward.py``),
independently of the category.

Such text is a Markov chain of characters; ``chain_model.py`` builds a model that writes it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from dapo_openrlhf.bench.workload.reward import END

PAD, EOS, UNKNOWN = "<pad>", END, "<unk>"
DIGITS = "0123456789"


@dataclass(frozen=True, kw_only=True)
class Category:
    """Prompts whose responses are about equally long."""

    mark: str
    """Last character of the prompt."""
    letters: str
    """The letters of responses, disjoint from those of all other categories."""
    mean_length: float
    """Mean response length before the cap, in tokens, the end token included; above 2."""
    share: float
    """Share of the prompts; all shares add up to 1."""

    @property
    def hazard(self) -> float:
        """Probability of the end token after each letter; a response has at least one letter."""
        return 1.0 / (self.mean_length - 1.0)


CATEGORIES = (
    Category(mark="A", letters="abcdef", mean_length=8, share=0.30),
    Category(mark="B", letters="ghijkl", mean_length=16, share=0.30),
    Category(mark="C", letters="mnopqr", mean_length=48, share=0.25),
    Category(mark="D", letters="stuvwx", mean_length=150, share=0.15),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the workload."""

    seed: int = 0
    categories: tuple[Category, ...] = CATEGORIES
    right_share: float = 0.3
    """Share of prompts all of whose responses are right."""
    wrong_share: float = 0.3
    """Share of prompts none of whose responses is right; the other prompts are mixed."""
    prompts: int = 8192
    prompt_tokens: int = 12
    """Length of every prompt in tokens: digits and a mark."""
    max_new_tokens: int = 256
    """Longest response, in tokens."""
    hidden_size: int = 256
    """Hidden size of the model, at least the number of different characters."""
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 4
    head_size: int = 64
    """Size of an attention head; vLLM's attention on CPUs supports 32 and 64 among others, but nothing smaller."""
    layer_scale: float = 1e-3
    """Standard deviation of the layers' output projections, compared with embeddings of size 1."""

    @property
    def max_len(self) -> int:
        """Longest prompt and response together, in tokens."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def pass_rate(self) -> float:
        """Expected share of groups that dynamic sampling keeps, apart from mixed groups that agree by chance."""
        return 1.0 - self.right_share - self.wrong_share


def draw_prompts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the prompts with their labels."""
    rng = random.Random(f"{recipe.seed}/prompts")
    marks = [category.mark for category in recipe.categories]
    shares = [category.share for category in recipe.categories]
    label_shares = (recipe.right_share, recipe.wrong_share, recipe.pass_rate)
    for _ in range(recipe.prompts):
        digits = "".join(rng.choices(DIGITS, k=recipe.prompt_tokens - 1))
        (mark,) = rng.choices(marks, shares)
        (label,) = rng.choices(("right", "wrong", "mixed"), label_shares)
        yield digits + mark, label


def list_tokens(recipe: Recipe) -> list[str]:
    """All tokens, in the order of their ids."""
    characters = "".join(category.mark + category.letters for category in recipe.categories)
    return [PAD, EOS, UNKNOWN, *DIGITS, *characters]
