"""On real vLLM: training samples from the whole distribution, whatever a model's folder recommends for chatting with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import CHARACTERS, make_tiny_model

from dapo_openrlhf.pipeline.ports import Sampling

pytestmark = pytest.mark.real

TEMPERATURE = 1.3
RECOMMENDED = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.05,
    "do_sample": True,
}
"""Qwen2.5's, and a min_p. Each would change log-probs or leave tokens out."""


PROMPT = [CHARACTERS.index(character) for character in "12+34="]
SAMPLING = Sampling(n=16, max_new_tokens=24, temperature=TEMPERATURE, top_p=1.0)


def engine_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine loop on a model folder."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from dapo_openrlhf.backend.engine.loop import EngineLoop

    engine_args = {
        "model": str(folder),
        "dtype": "float32",
        "max_model_len": 64,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 8 << 20,
        "enforce_eager": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
    }
    loop = EngineLoop(engine_args, name="engine 0", stop_ids=[1])
    loop.start().result(300)
    return loop


def test_a_models_recommended_sampling_does_not_reach_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path / "model", tied=True)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | RECOMMENDED))
    _, tokens = engine_loop(folder, monkeypatch).generate("group", PROMPT, SAMPLING).result(300)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    unlikely = 0
    for index in range(16):
        ids, logprobs = tokens.response(index)
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPT, *ids.tolist()]])).logits[0, len(PROMPT) - 1 : -1]
        whole = torch.log_softmax(logits / TEMPERATURE, dim=-1)
        chosen = whole.gather(1, torch.tensor(ids.tolist())[:, None])
        assert (chosen[:, 0] - torch.from_numpy(logprobs)).abs().max() < 1e-4
        unlikely += int((whole > chosen).sum(-1).ge(20).sum())
    assert unlikely > 20, "on a nearly flat distribution most tokens are not among the 20 likeliest"


def test_a_response_with_a_seed_is_the_same_in_any_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = engine_loop(make_tiny_model(tmp_path / "model", tied=True), monkeypatch)

    def sampled(seed: int | None, company: int) -> list[list[int]]:
        others = [loop.generate(f"other {i}", PROMPT[i:], replace(SAMPLING, n=2)) for i in range(company)]
        _, tokens = loop.generate("group", PROMPT, replace(SAMPLING, n=6, seed=seed)).result(300)
        for other in others:
            other.result(300)
        return [tokens.response(index)[0].tolist() for index in range(6)]

    alone = sampled(7, 0)
    assert sampled(7, 0) == sampled(7, 3) == alone
    assert sampled(8, 0)[:5] == alone[1:], "each response has the next number"
    assert sampled(None, 0) != sampled(None, 0)
    assert len({tuple(response) for response in alone}) == 6
