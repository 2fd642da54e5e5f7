"""How many expressions a second the rule's algebra compares, against bare math-verify on the same pairs."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass

KINDS = (
    (r"{0}\sqrt{{3}}+1", r"1+\sqrt{{3}}\cdot {0}", True),
    (r"\frac{{{0}\pi}}{{7}}", r"\frac{{{0}}}{{7}}\pi", True),
    ("({0},{1})", r"({0},\frac{{{1}0}}{{10}})", True),
    (r"\sqrt{{{0}}}, {1}", r"\{{{1},\sqrt{{{0}}}\}}", True),
    ("{0}x+{1}", "{1}+{0}x", True),
    ("x^2+{0}", "{1}+x^2", False),
    (r"{0}\sqrt{{2}}", r"{1}\sqrt{{2}}", False),
    ("[{0},{1})", "[{0},{1}]", False),
)
"""Answer, gold answer, and whether they are equal, for two numbers that follow each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRates:
    """Pairs a second in one process, and how many were judged as they are."""

    rule: float
    math_verify: float
    rule_right: int
    math_verify_right: int
    pairs: int

    @property
    def ratio(self) -> float:
        """The rule's rate over bare math-verify's."""
        return self.rule / self.math_verify

    def words(self) -> str:
        """One line."""
        return (
            f"expressions a second: {self.rule:,.0f} by the rule ({self.rule_right}/{self.pairs} as judged), "
            f"{self.math_verify:,.0f} by bare math-verify ({self.math_verify_right}/{self.pairs}): x {self.ratio:.1f}"
        )


def measure_answers(repeats: int = 25) -> AnswerRates:
    """Both on the same pairs in turn, ``repeats`` of every kind, none asked twice; processor time of this process."""
    from math_verify import parse, verify

    from dapo_openrlhf.rewards import algebra, verifier

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    algebra.prepare()

    def by_rule(answer: str, label: str) -> bool:
        found = verifier.extract_answer(rf"so \boxed{{{answer}}}.")
        return found is not None and verifier.compare(found, label, algebra.equal)

    def by_math_verify(answer: str, label: str) -> bool:
        gold, found = (parse(rf"so \boxed{{{text}}}.", parsing_timeout=None) for text in (label, answer))
        return bool(verify(gold, found, timeout_seconds=None))

    seconds, right = [0.0, 0.0], [0, 0]
    for answer, label, _ in KINDS:  # what is loaded late, and the ways through math-verify's grammar
        for number in (7, 77):
            by_rule(answer.format(number, number + 1), label.format(number, number + 1))
            by_math_verify(answer.format(number, number + 1), label.format(number, number + 1))
    for number in range(100, 100 + repeats):
        for answer, label, equal in KINDS:
            pair = answer.format(number, number + 1), label.format(number, number + 1)
            for index, judge in enumerate((by_rule, by_math_verify)):
                started = time.process_time()
                verdict = judge(*pair)
                seconds[index] += time.process_time() - started
                right[index] += verdict is equal
    pairs = repeats * len(KINDS)
    return AnswerRates(
        rule=pairs / seconds[0],
        math_verify=pairs / seconds[1],
        rule_right=right[0],
        math_verify_right=right[1],
        pairs=pairs,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    print(measure_answers(parser.parse_args().repeats).words())
