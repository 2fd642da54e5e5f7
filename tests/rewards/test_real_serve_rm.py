"""OpenRLHF's own reward server, ``openrlhf.cli.serve_rm``, behind ``reward.remote_url``, as its users start it on a CPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from tiny_model import make_tiny_tokenizer, tiny_config

from dapo_openrlhf.config.loading import build_reward
from dapo_openrlhf.rewards.process import SERVER_AWAY, RewardProcess, Scored
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import reward_settings

pytestmark = pytest.mark.real

QUERIES = ("3+4=7<eos>", "3+4=8<eos>", "3+4=seven, I should think<eos>", "3+4=<eos>")
QUESTION = Question(
    responses=[query.partition("=")[2].removesuffix("<eos>") for query in QUERIES],
    queries=list(QUERIES),
    prompt="3+4=",
    label=None,
)


def make_reward_model(folder: Path) -> list[float]:
    """Write a reward model as OpenRLHF's train_rm saves one; returns its rewards of :data:`QUERIES`, each by itself."""
    import torch
    from transformers import AutoTokenizer, Qwen2ForSequenceClassification

    make_tiny_tokenizer(folder)
    torch.manual_seed(0)
    config = tiny_config(tied=False)
    config.num_labels = 1
    model = Qwen2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(query, return_tensors="pt", add_special_tokens=False) for query in QUERIES]
    with torch.no_grad():
        return [float(model(**one).logits) for one in encoded]


@contextmanager
def served(model: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server, on the loopback device only.

    It imports flash-attn's compiled part, which is for GPUs, whichever attention it is told to use. An empty module in its
    place is all the help that it gets.
    """
    (model / "flash_attn_2_cuda.py").touch()
    command = [sys.executable, "-m", "openrlhf.cli.serve_rm", "--reward.model_name_or_path", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--ds.attn_implementation", "sdpa"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": str(model)}) as server,
    ):
        try:
            yield server
        finally:
            server.kill()


def answered(process: RewardProcess, server: subprocess.Popen[bytes], log: Path) -> list[Scored]:
    """The scores, once the server has loaded its model."""
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        scored = process.score_all(QUESTION)
        if all(one.reason != SERVER_AWAY for one in scored):
            return scored
        assert time.monotonic() < deadline, "the server does not answer"
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.5)
            raise AssertionError(log.read_text(errors="replace"))


def test_a_reward_model_is_served_by_openrlhf_itself(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model, log = tmp_path / "reward_model", tmp_path / "server.log"
    expected = make_reward_model(model)
    reward = build_reward(
        {"remote_url": f"http://127.0.0.1:{port}/get_reward", "correct_from": 0.0, "timeout": HANG_SECONDS},
        source="test",
    )
    with served(model, port, log) as server, RewardProcess(reward_settings(reward)) as process:
        scored = answered(process, server, log)
    scores = [one.score for one in scored]
    assert None not in scores, [one.error for one in scored]
    found = [score.reward for score in scores if score is not None]
    assert found == pytest.approx(expected, abs=0.05 * max(map(abs, expected))), (
        "bf16 there, each padded beside the others"
    )
    assert len(set(found)) == len(QUERIES), "each query has a reward of its own"
    assert [score.correct for score in scores if score is not None] == [one >= 0 for one in found]
    assert [score.logs for score in scores if score is not None] == [{"dummy_scores": one} for one in found]
