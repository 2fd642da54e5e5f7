"""Generation ends whatever a model's files say, and one bad prompt costs one prompt: on Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from marked_engine import MARK, MarkedEngine
from test_real_recovery import events_of, make_config
from transformers import AutoTokenizer

from dapo_openrlhf.backend.run import workers as run_workers
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import check_inputs
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine
from dapo_openrlhf.backend.run.stop_tokens import stop_tokens
from dapo_openrlhf.backend.run.workers import start_workers
from dapo_openrlhf.cli.train import train
from dapo_openrlhf.pipeline.ports import PromptFault, Sampling
from dapo_openrlhf.pipeline.resume_point import newest_point
from dapo_openrlhf.types import Prompt

pytestmark = pytest.mark.real

SAMPLING = Sampling(n=64, max_new_tokens=40, temperature=1.0, top_p=1.0)


def write_eos(model: Path, eos: Mapping[str, object] | None) -> None:
    """What generation_config.json says beside things that are none of the run's business; None: there is no such file."""
    file = model / "generation_config.json"
    if eos is None:
        file.unlink()
    else:
        file.write_text(json.dumps({"pad_token_id": 0, "temperature": 0.1, "top_k": 1} | eos))


def test_responses_end_alike_whatever_the_generation_config_says_and_a_hostile_prompt_costs_itself(
    tmp_path: Path,
) -> None:
    """Same seed, so the same responses: they end at <eos> though generation_config.json does not know it, and a
    temperature or top_k that stands there changes nothing."""
    config = make_config(tmp_path)
    model = Path(config.actor.model_name_or_path)
    inputs = check_inputs(config, training=False)
    ids = tuple(AutoTokenizer.from_pretrained(model)("1+1=")["input_ids"])

    async def responses(eos: Mapping[str, object] | None) -> list[list[int]]:
        write_eos(model, eos)
        stop = stop_tokens(str(model), chat=False)
        assert stop.ids == (1,)
        workers = await start_workers(config, replace(inputs, stop=stop), training=False)
        engine = workers.engines[0]
        generation = await engine.generate("first", prompt(ids), SAMPLING)
        tokens = ray.get(generation.tokens)
        found = [tokens.response(index)[0].tolist() for index in range(SAMPLING.n)]
        assert generation.truncated == tuple(response[-1] != 1 for response in found)
        if eos is None:
            await hostile(engine)
        ray.kill(engine.actor)
        return found

    async def hostile(engine: RemoteEngine) -> None:
        wrong = {"prompt_token_unknown": (5, 10**6), "prompt_empty": (), "prompt_too_long": (5,) * 30}
        for reason, ids_of_it in wrong.items():
            with pytest.raises(PromptFault) as raised:
                await engine.generate(reason, prompt(ids_of_it), SAMPLING)
            assert raised.value.reason == reason
            assert str(raised.value).startswith("prompt 0 (rows.jsonl, line 1): ")
        after = await engine.generate("after", prompt(ids), SAMPLING)
        assert len(after.lengths) == SAMPLING.n, "the engine goes on"

    async def main() -> list[list[list[int]]]:
        return [await responses(eos) for eos in ({"eos_token_id": 1}, {}, None)]

    with ray_cluster(config, inputs.device):
        expected, without, no_file = asyncio.run(main())
    assert any(response[-1] == 1 for response in expected)
    assert all(1 not in response[:-1] for response in expected)
    assert without == no_file == expected


def prompt(ids: tuple[int, ...]) -> Prompt:
    return Prompt(id=0, text="", token_ids=ids, source="rows.jsonl, line 1")


def test_a_prompt_that_fails_the_engine_core_is_dropped_and_stays_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row comes early; the engine restarts that it costs do not count, and the resumed run does without it."""
    monkeypatch.setattr(run_workers, "EngineActor", MarkedEngine)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # engines import their class from here
    settings = {"ckpt.save_steps": 2, "vllm.max_restarts": 3, "async.max_staleness": 0}
    config = make_config(tmp_path, **settings)
    rows = [json.dumps({"input": f"{MARK if index == 3 else index}+1=", "label": "7"}) for index in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    said = io.StringIO()
    assert train(config, started=time.monotonic(), stream=said) == 0
    run = tmp_path / "runs" / "dapo"
    events = events_of(run)
    dropped = [event for event in events if event["event"] == "prompt_dropped"]
    assert [(event["prompt"], event["reason"]) for event in dropped] == [(3, "prompt_kills_engines")]
    assert f"prompt dropped (prompt_kills_engines): prompt 3 ({tmp_path / 'prompts.jsonl'}" in said.getvalue()
    assert "responses end at '<eos>' (1: " in said.getvalue()
    assert 2 <= sum(event["event"] == "engine_lost" for event in events) <= 4
    assert [event["version"] for event in events if event["event"] == "batch_taken"] == [0, 1, 2, 3]

    longer = make_config(tmp_path, **settings, **{"train.max_steps": 6})
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    assert train(longer, started=time.monotonic(), resume=newest_point(run, print), stream=io.StringIO()) == 0
    again = events_of(run)[len(events) :]
    assert not [event for event in again if event["event"] in ("engine_lost", "prompt_dropped")]
    assert 3 not in [event["prompt"] for event in again if event["event"] == "group_dispatched"]
