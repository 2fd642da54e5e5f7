"""Prompts of the small ablation ladder: the quickstart's sums, easy, ordinary and impossible ones mixed.

As in a real data set, some training prompts teach nothing: the easy ones (two terms) are nearly always answered right,
the impossible ones (a label that is wrong, and that no response ever gives) never. The held-out problems are ordinary
ones (four to seven terms) only.

    python data/ablation_prompts.py --output DIR --train 4000 --heldout 192 --seed 0

writes DIR/train.jsonl and DIR/heldout.jsonl, one JSON object with `input` and `label` (both strings) per line.
"""

import argparse
import dataclasses
import itertools
import random
from pathlib import Path

from quickstart_prompts import Problem, stream_problems, take_problems, write_jsonl

EASY_SHARE = 0.30
IMPOSSIBLE_SHARE = 0.15
"""Shares of the training prompts; the rest is ordinary."""

EASY_TERMS = 2
MIN_TERMS, MAX_TERMS = 4, 7
"""Of ordinary and impossible problems."""

OUT_OF_REACH = 1000
"""What an impossible prompt's label is off by: the sums have two digits at most."""


@dataclasses.dataclass(frozen=True)
class Mislabelled(Problem):
    """A problem with a label that is far from its answer."""

    @property
    def label(self) -> str:
        return str(self.totals[-1] + OUT_OF_REACH)


def mix_training(count: int, seed: int) -> list[Problem]:
    """`count` training problems in random order. Easy ones repeat: there are some hundred different ones."""
    easy, impossible = round(EASY_SHARE * count), round(IMPOSSIBLE_SHARE * count)
    problems = take_problems(count - easy, held_out=False, seed=seed, min_terms=MIN_TERMS, max_terms=MAX_TERMS)
    problems[:impossible] = [Mislabelled(problem.terms) for problem in problems[:impossible]]
    stream = stream_problems(held_out=False, seed=seed, min_terms=EASY_TERMS, max_terms=EASY_TERMS)
    problems += itertools.islice(stream, easy)
    random.Random(seed).shuffle(problems)
    return problems


def take_heldout(count: int, seed: int) -> list[Problem]:
    """`count` distinct held-out problems."""
    return take_problems(count, held_out=True, seed=seed, min_terms=MIN_TERMS, max_terms=MAX_TERMS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the small ablation ladder's train and held-out prompts.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--train", type=int, default=4000, help="number of training problems")
    parser.add_argument("--heldout", type=int, default=192, help="number of held-out problems")
    parser.add_argument("--seed", type=int, default=0, help="chooses which problems of each half are taken")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    sets = {
        "train": mix_training(arguments.train, arguments.seed),
        "heldout": take_heldout(arguments.heldout, arguments.seed),
    }
    for name, problems in sets.items():
        write_jsonl(problems, arguments.output / f"{name}.jsonl")
        print(f"{arguments.output / name}.jsonl: {len(problems)} problems")


if __name__ == "__main__":
    main()
