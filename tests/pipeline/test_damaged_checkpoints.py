"""A checkpoint that is not as it was written is passed over, whatever happened to it and to which of its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, dump_config
from dapo_openrlhf.pipeline.checkpoint import SETTINGS_FILE, STATE_FILE, Checkpoints, RunState, damage
from dapo_openrlhf.pipeline.manifest import MANIFEST_FILE
from dapo_openrlhf.pipeline.prompts import PromptState
from dapo_openrlhf.pipeline.resume_point import ResumePoint, newest_point, point_of_name, settings_file

CONFIG = {
    "device": "cpu",
    "actor": {"model_name_or_path": "model"},
    "ds": {"attn_implementation": "sdpa", "param_dtype": "fp32"},
    "rollout": {"max_new_tokens": 8},
    "data": {"prompt_dataset": "p.jsonl", "max_len": 16},
    "reward": {"overlong_buffer_len": 0},
}
OPTIMIZER = "trainer/state/rank-0.safetensors"
MODEL = "model.safetensors"
FILES = (MODEL, "config.json", OPTIMIZER)


def save(run: Path, *steps: int) -> list[Path]:
    """Checkpoints of a run, of more than a chunk each."""
    checkpoints = Checkpoints(run / "checkpoints", max_num=9, settings=dump_config(build_config(CONFIG, source="test")))
    paths = []
    for step in steps:
        folder = Path(checkpoints.begin(step))
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode() * 1000 + str(step).encode())
        state = RunState(step=step, prompts=PromptState(drawn=step, returned=(), prompt_count=50))
        paths.append(Path(checkpoints.finish(state)))
    return paths


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    """Replace a file by a link that leads to itself."""
    path.unlink()
    path.symlink_to(path.name)


def wrong_type(path: Path) -> None:
    path.write_text("[]")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "zeroed": zero,
    "a bit flipped": flip_a_bit,
    "missing": Path.unlink,
    "a folder in its place": replace_by_a_folder,
    "wrong type": wrong_type,
    "a link to itself": loop,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("file", [*FILES, STATE_FILE, SETTINGS_FILE, MANIFEST_FILE])
def test_the_one_before_a_damaged_one_is_taken_and_it_is_said(tmp_path: Path, file: str, what: str) -> None:
    before, newest = save(tmp_path, 3, 4)
    assert damage(newest) == []
    DAMAGES[what](newest / file)
    said: list[str] = []
    assert newest_point(tmp_path, said.append) == ResumePoint(run=tmp_path, checkpoint=before)
    (words,) = said
    assert f"the checkpoint {newest} is damaged and is passed over: " in words
    assert file in words


@pytest.mark.parametrize("what", ["null", '"12"', "true", "[]", "{}", "-1", "1e999", "NaN", "12345678901234567890123"])
@pytest.mark.parametrize("entry", ["bytes", "xxh3", MODEL, "files"])
def test_a_manifest_may_hold_anything(tmp_path: Path, entry: str, what: str) -> None:
    before, newest = save(tmp_path, 3, 4)
    values = json.loads((newest / MANIFEST_FILE).read_text())
    place = {"files": values, MODEL: values["files"]}.get(entry, values["files"][MODEL])
    place[entry] = json.loads(what)
    (newest / MANIFEST_FILE).write_text(json.dumps(values))
    said: list[str] = []
    assert newest_point(tmp_path, said.append).checkpoint == before
    assert len(said) == 1 and (MODEL in said[0] or MANIFEST_FILE in said[0])


def test_a_file_that_the_disk_does_not_give_back_counts_as_damaged(tmp_path: Path) -> None:
    """The kernel gives no byte of what it shows as the start of this process's memory, and calls it a file of no bytes."""
    before, newest = save(tmp_path, 3, 4)
    manifest = newest / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace(f'"bytes": {(newest / MODEL).stat().st_size}', '"bytes": 0', 1))
    (newest / MODEL).unlink()
    (newest / MODEL).symlink_to("/proc/self/mem")
    said: list[str] = []
    assert newest_point(tmp_path, said.append).checkpoint == before
    assert "model.safetensors cannot be read: Input/output error" in said[0]


def test_a_folder_that_is_a_link_to_itself_or_has_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    """A copy that somebody made is neither gone on from nor ever removed."""
    (only,) = save(tmp_path, 3)
    (only.parent / "step-000009").symlink_to("step-000009")
    copies = [shutil.copytree(only, only.with_name(name)) for name in ("step-000003.bak", "step-best", "step-3")]
    checkpoints = Checkpoints(only.parent, max_num=1)
    assert checkpoints.finished() == [only]
    assert newest_point(tmp_path, pytest.fail).checkpoint == only
    (later,) = save(tmp_path, 1_000_000)
    assert Checkpoints(only.parent, max_num=1).finished() == [only, later]
    assert all((copy / MANIFEST_FILE).exists() for copy in copies)


def test_several_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    paths = save(tmp_path, 1, 2, 3, 4)
    for path in paths[1:]:
        flip_a_bit(path / MODEL)
    said: list[str] = []
    assert newest_point(tmp_path, said.append).checkpoint == paths[0]
    assert [path.name in words for path, words in zip(paths[:0:-1], said, strict=True)] == [True] * 3


def test_without_a_good_one_the_run_is_refused(tmp_path: Path) -> None:
    for path in save(tmp_path, 3, 4):
        truncate(path / OPTIMIZER)
    with pytest.raises(ConfigError, match=r"--resume .*: all 2 checkpoints in it are damaged"):
        newest_point(tmp_path, lambda text: None)
    with pytest.raises(ConfigError, match=r"--resume .*nothing: there is no such folder"):
        newest_point(tmp_path / "nothing", lambda text: None)


def test_pickles_of_an_earlier_version_are_not_read_and_it_is_said_what_to_do(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 3)
    (path / "trainer" / "state" / "mp_rank_00_model_states.pt").write_bytes(b"code")
    said: list[str] = []
    with pytest.raises(ConfigError, match="all 1 checkpoints in it are damaged"):
        newest_point(tmp_path, said.append)
    (words,) = said
    assert "holds pickles, as versions before 0.2.0 wrote them" in words
    assert f"start a new run from its model (actor.model_name_or_path {path})" in words


def test_files_that_somebody_added_are_nobodys_fault(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 3)
    (path / "notes.txt").write_text("the good one")
    assert damage(path) == []


def test_a_checkpoint_that_lost_its_state_still_counts_as_damaged(tmp_path: Path) -> None:
    before, newest = save(tmp_path, 3, 4)
    (newest / STATE_FILE).unlink()
    said: list[str] = []
    assert newest_point(tmp_path, said.append).checkpoint == before
    assert f"{STATE_FILE} is missing" in said[0]


def test_of_runs_of_one_name_the_last_with_a_good_checkpoint_goes_on(tmp_path: Path) -> None:
    save(tmp_path / "dapo", 3)
    (second,) = save(tmp_path / "dapo-2", 2)
    (broken,) = save(tmp_path / "dapo-10", 5)
    truncate(broken / MODEL)
    for other in ("dapo-11", "dapo-x", "dapo-2-b", "dapo2"):  # without checkpoints, or of other names
        (tmp_path / other).mkdir()
    save(tmp_path / "dapo-2-b", 9)
    said: list[str] = []
    assert point_of_name(tmp_path, "dapo", said.append) == ResumePoint(run=tmp_path / "dapo-2", checkpoint=second)
    assert str(broken) in said[0]
    assert point_of_name(tmp_path, "other", said.append) is None
    assert point_of_name(tmp_path / "nowhere", "dapo", said.append) is None


@pytest.mark.parametrize("what", ["missing", "zeroed", "wrong type", "empty"])
def test_a_broken_config_is_replaced_by_the_checkpoints(tmp_path: Path, what: str) -> None:
    (path,) = save(tmp_path, 3)
    point = ResumePoint(run=tmp_path, checkpoint=path)
    (tmp_path / "config.yaml").write_text(dump_config(build_config(CONFIG, source="test")))
    said: list[str] = []
    assert settings_file(point, said.append) == tmp_path / "config.yaml"
    DAMAGES[what](tmp_path / "config.yaml")
    assert settings_file(point, said.append) == path / SETTINGS_FILE
    assert "config.yaml" in said[0] and str(path / SETTINGS_FILE) in said[0]


def test_a_setting_that_somebody_wrote_wrongly_is_refused(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 3)
    (tmp_path / "config.yaml").write_text("actor: {learning_rate: 1}\n")
    with pytest.raises(ConfigError, match="learning_rate"):
        settings_file(ResumePoint(run=tmp_path, checkpoint=path), lambda text: None)


def test_a_run_whose_folder_was_removed_goes_on_from_what_was_written_later(tmp_path: Path) -> None:
    save(tmp_path / "run", 3)
    shutil.rmtree(tmp_path / "run")
    (path,) = save(tmp_path / "run", 6)
    point = newest_point(tmp_path / "run", lambda text: None)
    assert settings_file(point, lambda text: None) == path / SETTINGS_FILE
