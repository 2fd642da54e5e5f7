"""Prompts of the quickstart: short sums and differences, for example `8+7-5+9=` with the label `19`.

The problems come from reasoning-gym's procedural task `chain_sum`, rewritten to the shortest prompt a tiny
character-level model can read. Every problem belongs to exactly one of two halves of the task, train or held-out,
decided by a hash of its **content**; so no choice of seeds or sizes lets a held-out problem into training, here or
in the warm-up of the quickstart's base model. (Different seeds would not be enough: reasoning-gym seeds its item i
with seed + i, so two datasets with neighbouring seeds share nearly all their items.)

    python data/quickstart_prompts.py --output DIR --train 4000 --heldout 256 --seed 0

writes DIR/train.jsonl and DIR/heldout.jsonl, one JSON object with `input` and `label` (both strings) per line.
"""

import argparse
import hashlib
import itertools
import json
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.whole_file import write_whole

HELD_OUT_SHARE = 0.1
"""Share of all problems that is held out, in (0, 1)."""

SEARCH_LIMIT = 10**6
"""Most reasoning-gym items looked at before a request for too many distinct problems is refused."""

SEED_STRIDE = 10**9
"""Distance between the reasoning-gym seeds of two streams; no stream is longer, so streams never overlap."""


@dataclass(frozen=True)
class Problem:
    """A chain of sums and differences whose running totals never fall below zero."""

    terms: tuple[int, ...]
    """Signed terms in the order of the prompt, the first one >= 0: (8, 7, -5) is `8+7-5=`."""

    @property
    def prompt(self) -> str:
        """What the model reads, for example `8+7-5=`."""
        first, *rest = self.terms
        return f"{first}{''.join(f'{term:+d}' for term in rest)}="

    @property
    def totals(self) -> list[int]:
        """Running totals after each term, the first term included: [8, 15, 10]; the last is the answer."""
        return list(itertools.accumulate(self.terms))

    @property
    def label(self) -> str:
        """The gold answer, for example `10`."""
        return str(self.totals[-1])

    @property
    def held_out(self) -> bool:
        """Whether the problem is reserved for evaluation; the same for every order of the same terms."""
        digest = hashlib.sha256(repr(sorted(self.terms)).encode()).digest()
        return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def parse_expression(expression: str) -> Problem:
    """Read reasoning-gym's form, numbers and operators with blanks between: `8 + 7 - 5`."""
    first, *rest = expression.split()
    signed = [int(operator + number) for operator, number in zip(rest[::2], rest[1::2], strict=True)]
    return Problem((int(first), *signed))


def stream_problems(
    *, held_out: bool, seed: int, min_terms: int = 4, max_terms: int = 6, digits: int = 1
) -> Iterator[Problem]:
    """Yield endless problems of one half of the task, the same ones for the same arguments; some come twice.

    `min_terms` <= `max_terms` bound the number of terms; `digits` >= 1 is the length of each of them.
    """
    # A SAT solver that comes as source only and of which just the zebra puzzles make use: no reason to need a compiler.
    sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(
        "chain_sum",
        min_terms=min_terms,
        max_terms=max_terms,
        min_digits=digits,
        max_digits=digits,
        seed=seed * SEED_STRIDE,
        size=SEED_STRIDE,
    )
    for item in dataset:
        problem = parse_expression(item["metadata"]["expression"])
        if problem.held_out == held_out and min(problem.totals) >= 0:
            yield problem


def take_problems(count: int, *, held_out: bool, seed: int, min_terms: int = 4, max_terms: int = 6) -> list[Problem]:
    """The first `count` >= 0 distinct problems of one half of the task."""
    problems: dict[Problem, None] = {}
    stream = stream_problems(held_out=held_out, seed=seed, min_terms=min_terms, max_terms=max_terms)
    for problem in itertools.islice(stream, SEARCH_LIMIT):
        if len(problems) == count:
            return list(problems)
        problems[problem] = None
    raise ValueError(f"only {len(problems)} distinct problems in {SEARCH_LIMIT} tries, {count} wanted")


def write_jsonl(problems: Iterable[Problem], path: Path) -> None:
    """Write one `{"input": prompt, "label": answer}` per line, replacing the file in one step."""
    lines = (json.dumps({"input": problem.prompt, "label": problem.label}) for problem in problems)
    write_whole(path, "".join(f"{line}\n" for line in lines))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the quickstart's train and held-out prompts.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--train", type=int, default=4000, help="number of training problems")
    parser.add_argument("--heldout", type=int, default=256, help="number of held-out problems")
    parser.add_argument("--seed", type=int, default=0, help="chooses which problems of each half are taken")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, count, held_out in (("train", arguments.train, False), ("heldout", arguments.heldout, True)):
        write_jsonl(take_problems(count, held_out=held_out, seed=arguments.seed), arguments.output / f"{name}.jsonl")
        print(f"{arguments.output / name}.jsonl: {count} problems")


if __name__ == "__main__":
    main()
