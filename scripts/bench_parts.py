"""Rates of single parts, each against a yardstick on the same input, in turns within one run: `make bench-parts`.

    .venv/bin/python scripts/bench_parts.py [--rounds N] [PART ...]

A busy or slow machine slows a part and its yardstick alike, so the ratio says more than the rate. Everything is in
processor time of this process. Promised are 500 verifications a second and core, and 2,000 groups a second through the
controller whatever the number of prompts in a step.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Work = Callable[[], int]
"""Does some work once and returns how many units of it were done."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part and what it is measured against."""

    unit: str
    ours: Work
    yardstick: Work
    against: str
    most_rounds: int = 100
    """A part that takes long is measured no more often."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Units a second of the part and of its yardstick, round by round."""

    ours: list[float]
    yardstick: list[float]

    @property
    def ratios(self) -> list[float]:
        """The part's rate over the yardstick's of the same round."""
        return [one / other for one, other in zip(self.ours, self.yardstick, strict=True)]


ORDINARY = ("42", "-17", "1,234", r"\frac{3}{4}", "0.5", "12 cm", "x=5")
"""Answers that text and exact numbers decide."""
ALGEBRA = (
    (r"{0}\sqrt{{3}}+1", r"1+\sqrt{{3}}\cdot {0}"),
    (r"\frac{{{0}\pi}}{{7}}", r"\frac{{{0}}}{{7}}\pi"),
    ("({0},{1})", r"({0},\frac{{{1}0}}{{10}})"),
    ("{0}x+{1}", "{1}+{0}x"),
    ("x^2+{0}", "{1}+x^2"),
    (r"{0}\sqrt{{2}}", r"{1}\sqrt{{2}}"),
    ("[{0},{1})", "[{0},{1}]"),
)
"""Answer and label of questions that need algebra; numbers make each of them new."""


def verifier() -> Part:
    """Answers that text and numbers decide, within a response of 2 kB."""
    from math_verify import parse, verify

    from dapo_openrlhf.rewards.algebra import equal
    from dapo_openrlhf.rewards.verifier import compare, extract_answer

    responses = [("so " * 700 + "\nAnswer: " + answer, answer) for answer in ORDINARY]

    def ours() -> int:
        for response, label in responses * 20:
            answer = extract_answer(response)
            assert answer is not None and compare(answer, label, equal)
        return 20 * len(responses)

    def bare() -> int:
        for response, label in responses:
            verify(
                parse(f"${label}$", parsing_timeout=None), parse(response, parsing_timeout=None), timeout_seconds=None
            )
        return len(responses)

    return Part(unit="verifications", ours=ours, yardstick=bare, against="math-verify")


def expressions() -> Part:
    """Questions of algebra that repeat neither answer nor label."""
    from math_verify import parse, verify

    from dapo_openrlhf.rewards.algebra import equal, prepare
    from dapo_openrlhf.rewards.verifier import compare

    prepare()
    numbers = _numbers()

    def questions() -> list[tuple[str, str]]:
        first = next(numbers)
        return [(answer.format(first, first + 1), label.format(first, first + 1)) for answer, label in ALGEBRA]

    def ours() -> int:
        for answer, label in (asked := questions()):
            compare(answer, label, equal)
        return len(asked)

    def bare() -> int:
        for answer, label in (asked := questions()):
            gold = parse(f"${label}$", parsing_timeout=None)
            verify(gold, parse(f"${answer}$", parsing_timeout=None), timeout_seconds=None)
        return len(asked)

    return Part(unit="expressions", ours=ours, yardstick=bare, against="math-verify")


def _numbers() -> Iterator[int]:
    yield from range(200, 100_000)


def checksum() -> Part:
    """A checksum of a tensor of 64 MiB, against one sum over its numbers."""
    import torch

    from dapo_openrlhf.backend.transfer.checksum import bits_sum

    tensor = torch.randn(1 << 25).bfloat16()

    def ours() -> int:
        bits_sum(tensor).item()
        return 1

    def plain() -> int:
        tensor.sum(dtype=torch.float32).item()
        return 1

    return Part(unit="64 MiB", ours=ours, yardstick=plain, against="one sum")


def packing() -> Part:
    """Micro-batches of 4,096 responses for eight ranks, against sorting the lengths."""
    import random

    from dapo_openrlhf.pipeline.batch import Sample, split_mini_batch

    chance = random.Random(0)
    lengths = [min(int(chance.lognormvariate(7.0, 1.0)) + 1, 16_000) for _ in range(4096)]
    samples = [
        Sample(group=index // 16, index=index % 16, prompt_length=100, length=length, advantage=0.1, trained=True)
        for index, length in enumerate(lengths)
    ]

    def ours() -> int:
        split_mini_batch(samples, 8, 32_768)
        return len(samples)

    def sorting() -> int:
        for _ in range(20):
            sorted(lengths)
        return 20 * len(lengths)

    return Part(unit="responses", ours=ours, yardstick=sorting, against="sorting")


def controller(prompts: int, max_staleness: int) -> Part:
    """Steps of the real pipeline in virtual time, over engines, rewards and a trainer that only wait."""
    from controller_load import controller_groups

    from dapo_openrlhf.plan.virtual_time import run_virtual

    async def tasks() -> int:
        async with asyncio.TaskGroup() as group:
            for number in range(5000):
                group.create_task(asyncio.sleep(1.0 + number % 7))
        return 5000

    return Part(
        unit="groups",
        ours=lambda: controller_groups(prompts, max_staleness),
        yardstick=lambda: run_virtual(tasks()),
        against="bare tasks",
        most_rounds=1 if prompts > 1000 else 100,
    )


PARTS: Mapping[str, Callable[[], Part]] = {
    **{f"{prompts} K={k}": functools.partial(controller, prompts, k) for prompts in (64, 512, 8192) for k in (1, 4)},
    "verifier": verifier,
    "expressions": expressions,
    "checksum": checksum,
    "packing": packing,
}


def rate(work: Work) -> float:
    """Units a second of this process's processor time."""
    started = time.process_time()
    units = work()
    return units / max(time.process_time() - started, 1e-9)


def measure(part: Part, rounds: int) -> Rates:
    """The part and its yardstick in turns, after one round that does not count where there is time for it."""
    rounds = min(rounds, part.most_rounds)
    if rounds < part.most_rounds:
        part.ours(), part.yardstick()
    pairs = [(rate(part.ours), rate(part.yardstick)) for _ in range(rounds)]
    return Rates(ours=[ours for ours, _ in pairs], yardstick=[other for _, other in pairs])


def line(name: str, part: Part, rates: Rates) -> str:
    """One row of the table: medians, and the span of the ratios."""
    ratios = rates.ratios
    return (
        f"{name:<12} {statistics.median(rates.ours):>12,.0f} {part.unit:<14} {statistics.median(ratios):>9.2f} x "
        f"{part.against:<12} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def main() -> int:
    """Measure the parts that are named, or all."""
    parser = argparse.ArgumentParser(description="Rates of single parts, each against a yardstick on the same input.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is measured (5)")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; choose among {', '.join(PARTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    print(f"{'part':<12} {'a second':>12} {'':<14} {'ratio':>9}   {'against':<12} span of {options.rounds}", flush=True)
    for name in options.parts or PARTS:
        part = PARTS[name]()
        print(line(name, part, measure(part, options.rounds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
