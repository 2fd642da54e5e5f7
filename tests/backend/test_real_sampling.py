"""On real vLLM: training samples as its settings say, whatever a model's folder recommends for chatting with it."""

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


def engine_loop(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """An engine loop on a model folder, with ``more`` arguments of vLLM."""
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
        **more,
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


CUTS = (
    {"top_p": 0.7},
    {"top_k": 20, "top_p": 1.0},
    {"top_k": 20, "top_p": 0.7},
    {"min_p": 0.7, "top_p": 1.0},
    {"top_k": 6, "top_p": 0.95, "min_p": 0.1},
)


def test_engine_and_trainer_agree_on_what_a_truncated_sampler_drew_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of all kinds share the engine's steps, and one asks for no sets."""
    folder = make_tiny_model(tmp_path / "model", tied=True, seed=3)
    loop = engine_loop(folder, monkeypatch, return_sampling_mask=True)
    asked = [replace(SAMPLING, kept=True, n=4, seed=seed, **cut) for seed in (None, 5) for cut in CUTS]  # type: ignore[arg-type]
    others = [loop.generate(f"other {n}", PROMPT, replace(SAMPLING, n=2, temperature=t)) for n, t in enumerate((0, 1))]
    made = [loop.generate(f"group {index}", PROMPT, sampling) for index, sampling in enumerate(asked)]
    groups = {index: future.result(300)[1] for index, future in enumerate(made)}
    assert all(other.result(300)[1].kept is None for other in others)
    for index, sampling in enumerate(asked):
        counts = groups[index].kept.counts
        assert counts.max() > 1 and counts.min() < len(CHARACTERS), "or there would be nothing to see"
        assert sampling.top_k == 0 or counts.max() <= sampling.top_k
    batch, logprobs, reference = trained(folder, groups)
    difference = (logprobs - batch.rollout_logprobs).abs()
    assert difference.max() < 1e-5
    assert (logprobs - batch.rollout_logprobs)[batch.present].exp().sub(1).abs().max() < 1e-5, "ratios at age 0"
    assert (reference - batch.rollout_logprobs).abs().max() > 0.1, "over the whole vocabulary they are other numbers"


def trained(folder: Path, groups: dict[int, Any]) -> tuple[Any, Any, Any]:
    """A micro-batch of all responses; their log-probs over the sets, and over the whole vocabulary."""
    import torch
    from plain_model import PlainModel
    from transformers import AutoModelForCausalLM

    from dapo_openrlhf.backend.trainer import attention, logprobs
    from dapo_openrlhf.backend.trainer.collate import collate
    from dapo_openrlhf.backend.trainer.packing import Packing
    from dapo_openrlhf.backend.trainer.policy import Policy
    from dapo_openrlhf.pipeline.batch import Sample

    attention.register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.NAME)
    logprobs.install(model)
    policy = Policy(PlainModel(model, lr=0.0), Packing(attention.NAME), temperature=TEMPERATURE, reference=None)
    samples = tuple(
        Sample(group=group, index=index, prompt_length=len(PROMPT), length=int(length), advantage=0.0, trained=True)
        for group, tokens in groups.items()
        for index, length in enumerate(tokens.offsets[1:] - tokens.offsets[:-1])
    )
    batch = collate(samples, groups, device=torch.device("cpu"))
    with torch.no_grad():
        return batch, policy.logprobs(batch), policy.logprobs(replace(batch, kept=None))
