"""The table of docs/rewards.md: how the rule judges the pairs of tests/data, class by class.

Usage: python scripts/answer_classes.py [--write docs/rewards.md]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.rewards.process import RewardProcess
from dapo_openrlhf.rewards.settings import RewardSettings

DATA = Path(__file__).parents[1] / "tests" / "data"
BEGIN, END = "<!-- classes of answers: begin -->", "<!-- classes of answers: end -->"


def pairs() -> Iterator[tuple[str, str, str, bool]]:
    """Class, response, gold answer, and whether it is right; pairs without a class are ``mixed``."""
    for name in ("answer_classes.jsonl", "answer_pairs.jsonl"):
        for line in (DATA / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            response = row.get("response", f"Answer: {row.get('answer')}")
            yield row.get("class", "mixed, without a class"), response, row["label"], row["correct"]


def table(process: RewardProcess) -> str:
    """Markdown: pairs of each class, and how many of them are judged as a reader does."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, response, label, right in pairs():
        score = process.score(response, label=label).score
        verdict = (
            "undecided"
            if score is None
            else "as judged"
            if score.correct is right
            else "missed"
            if right
            else "rewarded"
        )
        counts[name].update(["right" if right else "wrong", verdict])
    columns = ("right", "wrong", "as judged", "missed", "rewarded", "undecided")
    counts["**all**"] = sum(counts.values(), Counter())
    rows = [
        f"| {name} | " + " | ".join(str(count[column]) for column in columns) + " |" for name, count in counts.items()
    ]
    head = "| class | right | wrong | judged so | right but missed | wrong but rewarded | undecided |"
    return "\n".join([head, "|---|---:|---:|---:|---:|---:|---:|", *rows])


def main() -> None:
    """Print the table, or put it where it stands in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this file")
    options = parser.parse_args()
    with RewardProcess(RewardSettings()) as process:
        found = table(process)
    if options.write is None:
        print(found)
        return
    before, begin, rest = options.write.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        parser.error(f"{options.write} has no lines {BEGIN!r} and {END!r} around a table")
    options.write.write_text(f"{before}{begin}\n{found}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
