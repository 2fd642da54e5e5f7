"""A model's weights that are pickles: transformers and vLLM read them with torch's safe loader, which runs nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny_model import make_tiny_model


class Hostile:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture(params=["torch", "pickle"])
def weights(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model's folder whose only weights are hostile: torch's archive of them, or a bare pickle."""
    folder = make_tiny_model(tmp_path / "model", tied=True)
    (folder / "model.safetensors").unlink()
    file, content = folder / "pytorch_model.bin", {"lm_head.weight": Hostile(tmp_path / "ran")}
    if request.param == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    return file


def test_they_would_run(weights: Path, tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError):  # a bare pickle is no archive, which is found after it has run
        torch.load(weights, weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_the_trainer_s_loader_runs_nothing(weights: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(Exception, match=r"(?i)weights"):
        AutoModelForCausalLM.from_pretrained(weights.parent)
    assert not (tmp_path / "ran").exists()


@pytest.mark.real
def test_the_engine_s_loader_runs_nothing(weights: Path, tmp_path: Path) -> None:
    from vllm.model_executor.model_loader.weight_utils import pt_weights_iterator

    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        list(pt_weights_iterator([str(weights)], use_tqdm_on_load=False))
    assert not (tmp_path / "ran").exists()
