"""The small ladder's prompts: their mix, and that no held-out problem is trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("prompts")
    command = ["data/ablation_prompts.py", "--output", str(folder), "--train", "400", "--heldout", "40"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=HANG_SECONDS)
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "heldout")
    }


def answer(prompt: str) -> int:
    return sum(int(term) for term in prompt.removesuffix("=").replace("-", "+-").split("+"))


def test_easy_ordinary_and_impossible_prompts_are_mixed(prompts: dict[str, list[dict[str, str]]]) -> None:
    train = prompts["train"]
    terms = [prompt["input"].count("+") + prompt["input"].count("-") + 1 for prompt in train]
    off = [int(prompt["label"]) - answer(prompt["input"]) for prompt in train]
    assert len(train) == 400
    assert sum(count == 2 for count in terms) == 120  # 30 % easy
    assert [off.count(0), off.count(1000)] == [340, 60]  # 15 % impossible
    assert all(count in (2, 4, 5, 6, 7) for count in terms)
    assert not any(difference for difference, count in zip(off, terms, strict=True) if count == 2)
    kinds = [(count == 2, difference) for count, difference in zip(terms, off, strict=True)]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_held_out_problems_are_ordinary_and_not_trained_on(prompts: dict[str, list[dict[str, str]]]) -> None:
    heldout = prompts["heldout"]
    assert len({prompt["input"] for prompt in heldout}) == 40
    assert all(int(prompt["label"]) == answer(prompt["input"]) for prompt in heldout)
    assert not {prompt["input"] for prompt in heldout} & {prompt["input"] for prompt in prompts["train"]}
