"""Generation ends whatever a model's files say, and one bad prompt costs one prompt: on Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path

import pytest
import ray
from marked_engine import MARK, MarkedEngine
from test_real_recovery import events_of, make_config

from dapo_openrlhf.backend import workers as run_workers
from dapo_openrlhf.backend.cluster import ray_cluster
from dapo_openrlhf.backend.inputs import check_inputs
from dapo_openrlhf.backend.messages import BadPrompt
from dapo_openrlhf.backend.stop_tokens import stop_tokens
from dapo_openrlhf.cli.train import train
from dapo_openrlhf.ports import GroupError, Sampling
from dapo_openrlhf.types import Prompt

pytestmark = pytest.mark.real

SAMPLING = Sampling(n=16, max_new_tokens=40, temperature=1.0, top_p=1.0)


def write_eos(model: Path, eos: object) -> None:
    """``eos_token_id`` as it is in generation_config.json; None: there is no such file."""
    file = model / "generation_config.json"
    if eos is None:
        file.unlink()
    else:
        file.write_text(json.dumps({"pad_token_id": 0, "temperature": 0.1, "top_k": 1} | dict(eos)))


def test_responses_end_alike_whatever_the_generation_config_says_and_a_hostile_id_costs_one_prompt(
    tmp_path: Path,
) -> None:
    """Same seed, so the same responses: they end at <eos> though generation_config.json does not know it, and a
    temperature or top_k that stands there changes nothing."""
    config = make_config(tmp_path)
    model = Path(config.actor.model_name_or_path)
    inputs = check_inputs(config, training=False)

    async def responses(eos: object) -> list[list[int]]:
        write_eos(model, eos)
        stop = stop_tokens(str(model), chat=False)
        workers = await run_workers.start_workers(config, replace_stop(inputs, stop), training=False)
        engine = workers.engines[0]
        generation = await engine.generate("first", Prompt(id=0, text="1+1=", label=""), SAMPLING)
        tokens = ray.get(generation.tokens)
        found = [tokens.response(index)[0].tolist() for index in range(SAMPLING.n)]
        ends = [ids[-1] in stop.ids for ids in found]
        assert generation.truncated == tuple(not end for end in ends)
        if eos == {"eos_token_id": 1}:
            await hostile(engine)
        for actor in (engine.actor,):
            ray.kill(actor)
        return found

    async def hostile(engine: object) -> None:
        for ids, reason in (([5, 10**6], "prompt_token_unknown"), ([], "prompt_empty"), ([5] * 30, "prompt_too_long")):
            with pytest.raises(GroupError) as raised:
                await ask(engine, ids)
            assert (raised.value.reason, raised.value.permanent) == (reason, True)
        after = await engine.generate("after", Prompt(id=0, text="1+1=", label=""), SAMPLING)
        assert len(after.lengths) == SAMPLING.n, "the engine goes on"

    async def ask(engine: object, ids: list[int]) -> None:
        """Past the tokeniser, which knows no such ids."""
        try:
            await engine.actor.generate_ids.remote(ids, SAMPLING)
        except ray.exceptions.RayTaskError as error:
            assert isinstance(error.cause, BadPrompt)
            raise GroupError(error.cause.reason, str(error.cause), permanent=True) from error

    async def main() -> list[list[list[int]]]:
        return [await responses(eos) for eos in ({"eos_token_id": 1}, {}, {"eos_token_id": -1}, None)]

    with ray_cluster(config, inputs.device), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_workers, "EngineActor", MarkedEngine)
        expected, *others = asyncio.run(main())
    assert any(ids[-1] == 1 for ids in expected)
    assert all(ids.count(1) <= 1 for ids in expected)
    assert others == [expected] * 3


def replace_stop(inputs: object, stop: object) -> object:
    from dataclasses import replace

    return replace(inputs, stop=stop)


def test_a_prompt_that_fails_the_engine_core_is_dropped_and_stays_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row comes early; the engine restarts that it costs do not count, and the resumed run does without it."""
    monkeypatch.setattr(run_workers, "EngineActor", MarkedEngine)
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
    assert "prompt dropped (prompt_kills_engines): prompt 3 is dropped" in said.getvalue()
    assert "responses end at '<eos>' (1: " in said.getvalue()
    assert 2 <= sum(event["event"] == "engine_lost" for event in events) <= 4
    assert [event["version"] for event in events if event["event"] == "batch_taken"] == [0, 1, 2, 3]

    longer = make_config(tmp_path, **settings, **{"train.max_steps": 6})
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    assert train(longer, started=time.monotonic(), resume=run, stream=io.StringIO()) == 0
    again = events_of(run)[len(events) :]
    assert not [event for event in again if event["event"] in ("engine_lost", "prompt_dropped")]
    assert 3 not in [event["prompt"] for event in again if event["event"] == "group_dispatched"]
