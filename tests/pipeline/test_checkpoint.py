"""Checkpoints are whole or not there, whenever the run that writes them is killed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.checkpoint import STATE_FILE, Checkpoints, RunState
from dapo_openrlhf.pipeline.prompts import PromptState

FILES = ("model.safetensors", "config.json", "trainer/optimizer.safetensors")


class Killed(BaseException):
    """The process ends here."""


def state(step: int) -> RunState:
    return RunState(step=step, prompts=PromptState(drawn=7 * step, returned=(3, 1, 3), prompt_count=50))


def save(checkpoints: Checkpoints, step: int) -> Path:
    folder = Path(checkpoints.begin(step))
    assert folder.is_absolute() and not list(folder.iterdir())
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(str(step))
    return Path(checkpoints.finish(state(step)))


def check_whole(path: Path) -> None:
    step = int(path.name.removeprefix("step-"))
    assert RunState.read(path) == state(step)
    assert {(path / name).read_text() for name in FILES} == {str(step)}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", max_num=2)
    (tmp_path / "c" / "step-copied-by-hand").mkdir(parents=True)  # without a state it is none
    paths = [save(checkpoints, step) for step in (5, 10, 15)]
    assert checkpoints.finished() == paths[1:]
    assert sorted(tmp_path.glob("c/step-0*")) == paths[1:]
    for path in paths[1:]:
        check_whole(path)


def test_a_checkpoint_may_be_made_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=3)
    save(checkpoints, 5)
    (tmp_path / "step-000005" / "old").touch()
    path = save(checkpoints, 5)
    assert not (path / "old").exists()
    check_whole(path)


class Guillotine:
    """Kills at the ``moment``-th change of the file system, in the middle of it where it has one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
        self.left = moment
        rename, rmtree, write = os.rename, shutil.rmtree, Path.write_text

        def half_removed(path: Path, ignore_errors: bool = False) -> None:
            if self._falls():
                for part in [p for p in sorted(Path(path).rglob("*")) if p.is_file()][:2]:
                    part.unlink()
                raise Killed
            rmtree(path, ignore_errors=ignore_errors)

        def renamed(old: Path, new: Path) -> None:
            if self._falls():
                raise Killed
            rename(old, new)

        def half_written(path: Path, text: str, **how: str) -> int:
            if path.name == STATE_FILE and self._falls():
                write(path, text[:9], **how)
                raise Killed
            return write(path, text, **how)

        monkeypatch.setattr(shutil, "rmtree", half_removed)
        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(Path, "write_text", half_written)

    def _falls(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("moment", range(1, 9))
def test_killed_at_any_moment_a_run_leaves_whole_checkpoints_and_the_next_one_cleans_up(
    tmp_path: Path, moment: int, again: bool
) -> None:
    """``again``: the checkpoint that is being made is there already, from before a resume."""
    checkpoints = Checkpoints(tmp_path, max_num=2)
    for step in (5, 10, 15) if again else (5, 10):
        save(checkpoints, step)
    with pytest.MonkeyPatch.context() as monkeypatch:
        guillotine = Guillotine(monkeypatch, moment)
        try:
            save(checkpoints, 15)
        except Killed:
            pass
        else:
            assert guillotine.left > 0, "it was caught"
    left = Checkpoints(tmp_path, max_num=2).finished()
    assert left
    for path in left:
        check_whole(path)
    save(Checkpoints(tmp_path, max_num=2), 20)
    assert len(list(tmp_path.iterdir())) <= 2, "remains of the killed run"


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a checkpoint to resume from"):
        RunState.read(tmp_path)
    (tmp_path / STATE_FILE).write_text('{"step": 3')
    with pytest.raises(ConfigError, match=f"{tmp_path} is not a checkpoint to resume from"):
        RunState.read(tmp_path)
