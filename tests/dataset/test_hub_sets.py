"""Sets of the hub by name: fetched once, and taken from before where the hub cannot be reached."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset import hub_sets
from dapo_openrlhf.dataset.hub_sets import local_path
from dapo_openrlhf.dataset.rows import read_rows


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def away(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    monkeypatch.setattr(hub_sets, "prefer_cache", lambda name, kind: trouble)


def test_a_path_is_a_path() -> None:
    assert local_path("some/file.jsonl", setting="data.prompt_dataset", say=pytest.fail) == Path("some/file.jsonl")


def test_a_set_is_fetched_by_subset_and_split_and_taken_from_before_without_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[object] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> object:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list([{"q": f"{split} {len(asked)}"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    away(monkeypatch, "")
    said: list[str] = []

    def rows(name: str) -> list[object]:
        return [row for _, row in read_rows(local_path(name, setting="eval.dataset", say=said.append))]

    assert rows("hf:owner/name@main:test") == [{"q": "test 1"}]
    assert rows("hf:owner/name") == [{"q": "train 2"}]
    assert rows("hf:owner/name") == [{"q": "train 3"}], "the hub is asked each time: a set may change"
    assert asked == [("owner/name", "main", "test"), ("owner/name", None, "train"), ("owner/name", None, "train")]
    away(monkeypatch, "HF_HUB_OFFLINE forbids to ask the hub")
    assert rows("hf:owner/name@main:test") == [{"q": "test 1"}] and len(asked) == 3
    assert said == [
        "eval.dataset: hf:owner/name@main:test is as it was fetched before: HF_HUB_OFFLINE forbids to ask the hub"
    ]


def test_a_set_that_cannot_be_had_is_refused_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: object, **__: object) -> object:
        raise ValueError("Unknown split")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    away(monkeypatch, "the hub cannot be reached; give a file")
    with pytest.raises(
        ConfigError, match=r"data\.prompt_dataset: hf:a/b:x cannot be loaded: the hub cannot be reached"
    ):
        local_path("hf:a/b:x", setting="data.prompt_dataset", say=pytest.fail)
    away(monkeypatch, "")
    with pytest.raises(ConfigError, match=r"hf:a/b:x cannot be loaded: Unknown split"):
        local_path("hf:a/b:x", setting="data.prompt_dataset", say=pytest.fail)
    for error in (
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        RuntimeError("Dataset scripts are no longer supported, but found b.py"),
    ):
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
        with pytest.raises(ConfigError, match=rf"hf:a/b:x cannot be loaded: {error}"):
            local_path("hf:a/b:x", setting="data.prompt_dataset", say=pytest.fail)
    with pytest.raises(ConfigError, match=r"hf: is no name of a set; it has the form hf:OWNER/NAME"):
        local_path("hf:", setting="data.prompt_dataset", say=pytest.fail)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the package datasets"):
        local_path("hf:a/b", setting="data.prompt_dataset", say=pytest.fail)


# ---------------------------------------------------------------- data.prompt_split, eval.split


def saved(folder: Path, *splits: str) -> Path:
    """A folder as datasets saves one with splits, with what is looked at of it."""
    for split in splits:
        (folder / split).mkdir(parents=True)
        (folder / split / "state.json").write_text("{}")
    (folder / "dataset_dict.json").write_text("{}")
    return folder


def split_path(name: str, split: str | None, setting: str = "data.prompt_dataset") -> Path:
    return local_path(name, setting=setting, say=pytest.fail, split=split)


def test_a_split_is_that_of_sets_whose_name_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[object] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> object:
        asked.append((name, split))
        return datasets.Dataset.from_list([{"q": "1"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    away(monkeypatch, "")
    split_path("hf:a/b", "test")
    split_path("hf:a/b:test", "test")
    split_path("hf:a/b:test", None)
    assert asked == [("a/b", "test")] * 3
    folder = saved(tmp_path / "set", "train", "test")
    assert split_path(str(folder), "test") == folder / "test"
    assert split_path(str(folder / "test"), "test") == folder / "test"
    assert split_path(str(folder), None) == folder, "which is refused when it is read, as ever"
    assert split_path("a.jsonl", "train") == Path("a.jsonl"), "the one split of a file"
    (tmp_path / "single").mkdir()
    assert split_path(str(tmp_path / "single"), "test") == tmp_path / "single", (
        "OpenRLHF takes a set without splits whole"
    )


@pytest.mark.parametrize(
    ("name", "split", "setting", "told"),
    [
        (
            "hf:a/b:train",
            "test",
            "data.prompt_dataset",
            "data.prompt_split: 'test', but hf:a/b:train (data.prompt_dataset) names",
        ),
        ("hf:a/b@c:x", "y", "eval.dataset", "eval.split: 'y', but hf:a/b@c:x (eval.dataset) names the split 'x'"),
        ("SET/train", "test", "data.prompt_dataset", "names the split 'train'; leave one of the two out"),
        ("SET", "dev", "eval.dataset", "has no split 'dev'; it has test, train"),
        ("a.jsonl", "test", "data.prompt_dataset", "data.prompt_split: a.jsonl is a file, which has no split 'test'"),
        ("SET", "", "eval.dataset", "has no split ''"),
    ],
)
def test_a_split_that_contradicts_is_refused(tmp_path: Path, name: str, split: str, setting: str, told: str) -> None:
    folder = saved(tmp_path / "set", "train", "test")
    with pytest.raises(ConfigError) as caught:
        split_path(name.replace("SET", str(folder)), split, setting)
    assert told in str(caught.value)
