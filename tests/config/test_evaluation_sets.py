"""Several sets of held-out problems: their names, what each has of its own, and which one decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, dump_config, load_config, parse_overrides
from dapo_openrlhf.config.settings import Config

BASE: dict[str, Any] = {
    "actor": {"model_name_or_path": "some/model"},
    "data": {"prompt_dataset": "prompts.jsonl", "max_len": 4096},
    "rollout": {"max_new_tokens": 1024},
}


def config(words: str = "", **section: Any) -> Config:
    overrides: dict[str, Any] = {"eval": section} if section else parse_overrides(words.split())
    nested = {**BASE}
    for name, value in overrides.items():
        *sections, key = name.split(".")
        inner = nested
        for part in sections:
            inner = inner.setdefault(part, {})
        inner[key] = value
    nested.setdefault("eval", {})
    return build_config(nested, source="test")


def refusal(words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (["held.jsonl"], [("held", "")]),
        (["aime=held.jsonl"], [("aime", "aime")]),
        (["a/gsm8k_v1.1.jsonl.gz", "math-500.parquet"], [("gsm8k_v1.1", "gsm8k_v1.1"), ("math-500", "math-500")]),
        (["hf:owner/MATH-500:test", "hf:owner/sums@hard:test"], [("MATH-500", "MATH-500"), ("sums-hard", "sums-hard")]),
        (["runs/lr=1/held.jsonl", "saved/folder/"], [("held", "held"), ("folder", "folder")]),
        (["a b.jsonl", "-x.jsonl"], [("a_b", "a_b"), ("_-x", "_-x")]),
    ],
)
def test_a_set_has_its_own_name_or_its_files(dataset: list[str], names: list[tuple[str, str]]) -> None:
    sets = config(dataset=dataset).eval_sets
    assert [(one.name, one.key) for one in sets] == names
    assert [one.path for one in sets] == [path.removeprefix("aime=") for path in dataset]


def test_names_may_be_a_mapping_and_are_written_as_text() -> None:
    built = config(dataset={"aime": "a.jsonl", "math": "hf:owner/math:test"})
    assert built.eval.dataset == ("aime=a.jsonl", "math=hf:owner/math:test")
    assert [(one.key, one.path) for one in built.eval_sets] == [("aime", "a.jsonl"), ("math", "hf:owner/math:test")]


def test_a_set_has_what_it_is_given_and_shares_the_rest(tmp_path: Path) -> None:
    built = config(
        "--eval.dataset aime=a.jsonl b.jsonl --eval.n_samples_per_prompt 4 --eval.temperature 0.6 --eval.max_samples 9 "
        "--eval.sets.aime.n_samples_per_prompt 32 --eval.sets.aime.top_p 0.7 --eval.sets.aime.max_new_tokens 2048 "
        "--eval.sets.b.label_key answer --eval.sets.b.temperature 0"
    )
    aime, b = built.eval_sets
    assert (aime.n_samples_per_prompt, aime.temperature, aime.top_p, aime.max_new_tokens) == (32, 0.6, 0.7, 2048)
    assert (b.n_samples_per_prompt, b.temperature, b.top_p, b.max_new_tokens) == (4, 0, 1.0, 1024)
    assert (aime.max_samples, aime.label_key, b.label_key, b.input_key) == (9, "label", "answer", "input")
    assert (aime.room, b.room) == ("eval.sets.aime.max_new_tokens", "rollout.max_new_tokens")
    assert b.column("label_key") == "eval.sets.b.label_key"
    assert aime.column("input_key") == "data.input_key, for this set alone eval.sets.aime.input_key"
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(built))
    assert load_config(file) == built


def test_a_name_with_dots_in_it_has_settings_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "actor: {model_name_or_path: m}\ndata: {prompt_dataset: p.jsonl}\neval: {dataset: [a.v2.jsonl, b.jsonl]}\n"
    )
    words = "--eval.sets.a.v2.temperature 0.5 --eval.sets.a.v2.top_p 0.7 --eval.sets.b.temperature 0"
    dotted, plain = load_config(file, parse_overrides(words.split())).eval_sets
    assert (dotted.name, dotted.temperature, dotted.top_p, plain.temperature) == ("a.v2", 0.5, 0.7, 0)
    with pytest.raises(ConfigError, match=r"eval\.sets: there is no set a\.v3; eval\.dataset has a\.v2, b"):
        load_config(file, parse_overrides(["--eval.sets.a.v3.temperature", "0.5"]))


def test_a_single_set_is_as_it_always_was() -> None:
    (one,) = config("--eval.dataset held.jsonl --eval.max_new_tokens 64").eval_sets
    assert (one.key, one.room, one.column("label_key")) == ("", "eval.max_new_tokens", "data.label_key")
    assert config().eval_sets == ()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "--eval.dataset a/test.jsonl b/test.jsonl",
            ["2 sets have the name test (a/test.jsonl, b/test.jsonl)", "NAME=PATH"],
        ),
        ("--eval.dataset a=x.jsonl a=y.jsonl", ["2 sets have the name a (x.jsonl, y.jsonl)"]),
        ("--eval.dataset x.jsonl x.jsonl", ["2 sets have the name x"]),
        ("--eval.dataset a,b=x.jsonl", ["'a,b' is no name of a set", "write ./a,b=x.jsonl if all of it is a path"]),
        ("--eval.dataset ..=x.jsonl", ["'..' is no name of a set"]),
        ("--eval.dataset =x.jsonl", ["'' is no name of a set"]),
        ("--eval.dataset aime=", ["aime= names no file"]),
        (f"--eval.dataset {'n' * 65}=x.jsonl", ["at most 64"]),
        ("--eval.dataset a=x.jsonl --eval.sets.b.top_p 0.7", ["eval.sets: there is no set b; eval.dataset has a"]),
        ("--eval.sets.b.top_p 0.7", ["there is no set b; eval.dataset has none"]),
        (
            "--eval.dataset a=x.jsonl --eval.sets.a.temprature 0.7",
            ["eval.sets.a.temprature: there is no such setting; did you mean eval.sets.a.temperature?"],
        ),
        ("--eval.dataset a=x.jsonl --eval.sets.a.top_p 7", ["eval.sets.a.top_p: 7 is not accepted"]),
        ("--eval.dataset a=x.jsonl --eval.sets.a.temperature 0.001", ["eval.sets.a.temperature: 0.001 is colder"]),
        (
            "--eval.dataset a=x.jsonl b=y.jsonl --eval.sets.b.max_new_tokens 4096",
            ["eval.sets.b.max_new_tokens: 4096 leaves no room", "data.max_len 4096"],
        ),
        (
            "--eval.dataset a=x.jsonl b=y.jsonl --eval.sets.b.n_samples_per_prompt 2 --ckpt.best_metric_key c/pass@2",
            [
                "'c/pass@2' is no number",
                "avg@1, pass@1, a/accuracy, a/avg@1, a/pass@1, b/accuracy, b/avg@2",
                "of a, the first set",
            ],
        ),
        ("--eval.dataset.a 3", ["eval.dataset: {'a': 3} is not accepted"]),
        ("--eval.dataset a=x.jsonl --eval.sets [1]", ["eval.sets: [1] is not accepted"]),
        ("--eval.dataset a=x.jsonl --eval.sets.a 3", ["eval.sets.a: 3 is not accepted"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(words: str, told: list[str]) -> None:
    said = refusal(words)
    for part in told:
        assert part in said, said


@pytest.mark.parametrize("key", ["", "none", "pass@1", "b/pass@2", "a/accuracy"])
def test_the_number_that_decides_may_be_any_sets(key: str) -> None:
    words = "--eval.dataset a=x.jsonl b=y.jsonl --eval.sets.b.n_samples_per_prompt 2"
    built = config(f"{words} --ckpt.best_metric_key {key}" if key else words)
    assert built.ckpt.best_metric_key == key


def test_a_rule_is_told_once_though_several_sets_share_it() -> None:
    assert refusal("--eval.dataset a=x.jsonl b=y.jsonl --eval.temperature 0.001").count("is colder") == 1
