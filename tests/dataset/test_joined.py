"""Several files of prompts, read as one set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import CHARACTERS, make_tiny_tokenizer

from dapo_openrlhf.backend.run.inputs import Inputs, read_prompts
from dapo_openrlhf.backend.run.run_settings import drawing
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config

pytestmark = pytest.mark.long


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = make_tiny_tokenizer(tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"vocab_size": len(CHARACTERS)}))
    for name, count in (("few", 2), ("many", 5), ("none", 0)):
        rows = [{"input": f"{index}+{count}=", "label": str(index + count)} for index in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "actor": {"model_name_or_path": str(model)},
        "device": "cpu",
        "ds": {"attn_implementation": "sdpa"},
        "rollout": {"max_new_tokens": 8, "batch_size": 4, "n_samples_per_prompt": 2},
        "train": {"batch_size": 4},
        "data": {"max_len": 32},
    }


def config(settings: dict[str, Any], folder: Path, *names: str, **data: Any) -> Config:
    files = [str(folder / f"{name}.jsonl") for name in names]
    return build_config(
        settings | {"data": settings["data"] | {"prompt_dataset": files} | data, "reward": {}}, source="test"
    )


def test_ids_texts_and_lengths_go_on_from_file_to_file(settings: dict[str, Any], tmp_path: Path) -> None:
    joined = read_prompts(config(settings, tmp_path, "few", "many"))
    assert [prompt.id for prompt in joined] == list(range(7)) and len(joined) == 7 and joined.sizes == (2, 5)
    assert [prompt.text for prompt in joined[:3]] == ["0+2=", "1+2=", "0+5="]
    assert joined[-1].label == "9" and joined[2].source.endswith("many.jsonl, line 1")
    assert joined.lengths() == [len(prompt.token_ids) for prompt in joined] == [4] * 7
    with pytest.raises(IndexError):
        joined[7]
    alone = read_prompts(config(settings, tmp_path, "few"))
    again = read_prompts(config(settings, tmp_path, "many", "few"))
    assert len({joined.identity, again.identity, alone.identity}) == 3, "another order is another set"


def test_a_file_without_prompts_is_refused_by_name(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl \(data\.prompt_dataset\): holds no prompts"):
        read_prompts(config(settings, tmp_path, "few", "none"))


def test_rows_are_taken_from_the_beginning_of_each_file(settings: dict[str, Any], tmp_path: Path) -> None:
    joined = read_prompts(config(settings, tmp_path, "few", "many", max_samples=3))
    assert joined.sizes == (2, 3) and [prompt.label for prompt in joined] == ["2", "3", "5", "6", "7"]


def test_how_prompts_are_drawn_follows_from_the_configuration(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = config(settings, tmp_path, "few", "many")
    joined = read_prompts(plain)
    inputs = Inputs(
        device=None,  # type: ignore[arg-type]
        prompts=joined,
        problems=[],
        stop=None,  # type: ignore[arg-type]
        set_sizes=joined.sizes,
        prompt_lengths=joined.lengths(),
    )
    assert (drawing(plain, inputs).sizes, drawing(plain, inputs).shares, drawing(plain, inputs).difficulty) == (
        (), (1.0,), None,
    )  # fmt: skip
    mixed = drawing(config(settings, tmp_path, "few", "many", prompt_probs=[0.333, 0.6665], curriculum=True), inputs)
    assert (
        mixed.sizes == (2, 5)
        and sum(mixed.shares) == pytest.approx(1)
        and mixed.shares[0] == pytest.approx(1 / 3, abs=1e-3)
    )
    assert mixed.difficulty is not None
    assert replace(mixed.difficulty, lengths=()).responses == 2 and mixed.difficulty.lengths == [4] * 7
