"""On real vLLM with asynchronous scheduling, as on every GPU: each token is of the weights that it is said to be of.

With it vLLM schedules a step while the one before is still in flight, so that a step's tokens come one call later, and a
response that has ended gets one token too many. On a CPU vLLM switches it off, though the model runner and the executor
can do it; the engine here is told so once more, behind vLLM's back. Every token's log-prob is compared with a forward pass
of the weights of its version over the cache that the versions before have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from patience import HANG_SECONDS
from tiny_model import CHARACTERS, make_tiny_model

from dapo_openrlhf.backend.engine.rollout_worker import WeightUpdates
from dapo_openrlhf.backend.engine.unfinished import UnfinishedGroup, UnfinishedResponse
from dapo_openrlhf.backend.messages import GenerationReport, GroupTokens
from dapo_openrlhf.pipeline.ports import Sampling

pytestmark = pytest.mark.real

TEMPERATURE = 1.3
PROMPT = [CHARACTERS.index(character) for character in "12+34="]
STOP = [1, 40, 41, 42]
VERSIONS = 3
"""Models that publications go through in turn: version v has the weights of model v modulo this."""
BLOCKS = 18
"""Blocks of 32 tokens in the attention cache, of which vLLM keeps one; a response of more than 26 tokens needs two."""


class Driven:
    """An engine loop to which things happen at chosen steps, on its own thread, so that their order is certain."""

    def __init__(self, folders: Sequence[Path]) -> None:
        from transformers import AutoModelForCausalLM
        from vllm.model_executor.models import registry
        from vllm.platforms.cpu import CpuPlatform

        from dapo_openrlhf.backend.engine.loop import EngineLoop

        self.folders = folders
        self.models: list[Any] = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders]
        self.version = 0
        self._planned: list[tuple[int, Callable[[], object]]] = []
        self._steps = 0
        self.seen: list[int] = []
        """Steps in flight after each step."""
        self.preempted = 0
        """How often a response lost its place in the attention cache to another one."""
        told = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

        def told_otherwise(platform: type[CpuPlatform], config: Any) -> None:
            assert config.scheduler_config.async_scheduling
            told(platform, config)
            assert not config.scheduler_config.async_scheduling, "vLLM leaves it on by itself"
            config.scheduler_config.async_scheduling = True

        engine_args = {
            "model": str(folders[0]),
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "max_model_len": 64,
            "max_num_seqs": 16,
            "block_size": 32,
            "num_gpu_blocks_override": BLOCKS,
            "kv_cache_memory_bytes": 8 << 20,
            "enforce_eager": True,
            "async_scheduling": True,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_run_in_subprocess", lambda look: look())  # a minute in processes of their own
            patch.setattr(CpuPlatform, "check_and_update_config", classmethod(told_otherwise))
            self.loop = EngineLoop(engine_args, name="engine 0", stop_ids=STOP)
            self.loop.start().result(HANG_SECONDS)
        self.core: Any = self.loop._core.engine_core
        self._step = self.loop._step
        self.loop._step = self._stepped  # type: ignore[method-assign]
        self._preempt = self.core.scheduler._preempt_request
        self.core.scheduler._preempt_request = self._preempted

    def _stepped(self) -> None:
        self._step()
        self._steps += 1
        self.seen.append(self.steps_in_flight)
        while self._planned and self._planned[0][0] <= self._steps:
            self._planned.pop(0)[1]()

    def _preempted(self, request: Any, timestamp: float, **told: bool) -> None:
        self.preempted += not told.get("drop_stale_output", False)  # which is a new version's doing
        self._preempt(request, timestamp, **told)

    def plan(self, *planned: tuple[int, Callable[[], object]]) -> None:
        """Do something after each of so many steps from now on; the loop must be idle."""
        self._steps, self._planned = 0, sorted(planned, key=lambda pair: pair[0])
        self.seen.clear()

    @property
    def steps_in_flight(self) -> int:
        return len(self.core.batch_queue)

    def publish(self) -> Future[Any]:
        """Load the next version from its folder, by vLLM's own means."""
        self.version += 1
        folder = self.folders[self.version % VERSIONS]

        def load(core: Any) -> None:
            assert not core.engine_core.batch_queue, "weights are replaced under a running step"
            core.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})

        return self.loop.load_weights(self.version, load)

    def generate(self, name: str, *, n: int = 4, new_tokens: int = 40) -> Future[Any]:
        sampling = Sampling(n=n, max_new_tokens=new_tokens, temperature=TEMPERATURE, top_p=1.0)
        return self.loop.generate(name, PROMPT, sampling)

    def expected(self, tokens: GroupTokens, index: int, *, pure: bool) -> torch.Tensor:
        """Log-probs of a response's tokens, each under its version.

        ``pure``: over a cache of that version too. Otherwise what a version has put into the cache stays.
        """
        ids = torch.tensor([[*PROMPT, *tokens.response(index)[0].tolist()]])
        runs, found, cache, start = tokens.response_versions(index), [], None, 0
        for version, end in zip(runs.versions.tolist(), runs.ends.tolist(), strict=True):
            model, done = self.models[version % VERSIONS], 0 if start == 0 else len(PROMPT) + start - 1
            stop = len(PROMPT) + end - 1
            with torch.no_grad():
                if pure:
                    logits = model(ids[:, :stop]).logits[0, len(PROMPT) + start - 1 :]
                else:
                    output = model(ids[:, done:stop], past_key_values=cache, use_cache=True)
                    cache, logits = output.past_key_values, output.logits[0, start - end :]
            whole = torch.log_softmax(logits / TEMPERATURE, dim=-1)
            found.append(whole.gather(1, ids[0, len(PROMPT) + start : stop + 1, None])[:, 0])
            start = end
        return torch.cat(found)

    def check(self, made: Any, *, pure: bool = False, over_limit: int = 40) -> tuple[GenerationReport, GroupTokens]:
        """A group's tokens are of the versions that they are said to be of, and none comes behind a stop token."""
        assert made is not None
        report, tokens = made
        assert sum(report.version_tokens) == len(tokens.response_ids) == len(tokens.versions.per_token())
        for index in range(len(report.lengths)):
            ids, logprobs = tokens.response(index)
            assert not np.isin(ids[:-1], STOP).any(), "a token came behind the one that ends the response"
            assert report.truncated[index] == (ids[-1] not in STOP)
            assert report.cut[index] or not report.truncated[index] or len(ids) == over_limit
            difference = (self.expected(tokens, index, pure=pure) - torch.from_numpy(logprobs)).abs().max()
            assert difference < 1e-4, f"response {index} of {runs_of(tokens, index)}: {difference}"
        return report, tokens


def runs_of(tokens: GroupTokens, index: int) -> list[tuple[int, int]]:
    """Version and number of tokens of each run of a response."""
    runs = tokens.response_versions(index)
    return [*zip(runs.versions.tolist(), np.diff(runs.ends, prepend=0).tolist(), strict=True)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    folders = []
    for seed in range(VERSIONS):
        folders.append(make_tiny_model(tmp_path_factory.mktemp(f"model-{seed}"), tied=False, seed=seed))
        sharpen(folders[-1])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "TORCHDYNAMO_DISABLE": "1",
        }.items():
            patch.setenv(name, value)
        yield Driven(folders)


def sharpen(folder: Path) -> None:
    """Make a random model's distributions far from flat, so that two of them differ at every token."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(autouse=True)
def _as_it_begins(engine: Driven) -> Iterator[None]:
    engine.plan()
    engine.loop._updates = WeightUpdates()
    yield
    assert not engine.loop._responses, "nothing is left in the core"
    assert not engine._planned, "all that was planned has happened"


def test_the_engine_schedules_asynchronously_and_versions_can_be_told_apart(engine: Driven) -> None:
    report, tokens = engine.check(engine.generate("g").result(HANG_SECONDS))
    assert engine.seen[:10] == [1] * 10, "a step is in flight whenever another one has ended"
    other = engine.models[(engine.version + 1) % VERSIONS]
    ids, logprobs = tokens.response(int(np.argmax(report.lengths)))
    with torch.no_grad():
        logits = other(torch.tensor([[*PROMPT, *ids.tolist()]])).logits[0, len(PROMPT) - 1 : -1]
    others = torch.log_softmax(logits / TEMPERATURE, dim=-1).gather(1, torch.tensor(ids.tolist())[:, None])[:, 0]
    assert ((others - torch.from_numpy(logprobs)).abs() > 1e-2).float().mean() > 0.9


def test_a_warm_up_fills_the_engine_and_leaves_nothing_in_it(engine: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs only are warmed up; what it does is the same here."""
    running = []

    def step() -> None:
        running.append(len(engine.core.scheduler.running))
        engine._stepped()

    monkeypatch.setattr(engine.loop, "_step", step)
    engine.plan()
    engine.loop.between_steps(lambda core: engine.loop._warm_up()).result(HANG_SECONDS)
    assert max(running) == 16
    assert (engine.core.scheduler.running, len(engine.core.batch_queue), engine.loop._responses) == ([], 0, {})
    engine.check(engine.generate("g").result(HANG_SECONDS))


def test_weights_come_while_a_step_is_in_flight_and_its_tokens_are_of_those_before(engine: Driven) -> None:
    """In two groups of different lengths, of which one comes later; two publications come one upon the other."""
    before, in_flight, loads, late = engine.version, [], [], []

    def publish() -> None:
        in_flight.append(engine.steps_in_flight)
        loads.append(engine.publish())

    engine.plan(
        (4, publish), (7, lambda: late.append(engine.generate("late", n=3, new_tokens=20))), (12, publish), (12, publish)
    )  # fmt: skip
    report, tokens = engine.check(engine.generate("early", n=4).result(HANG_SECONDS))
    late_report, _ = engine.check(late[0].result(HANG_SECONDS), over_limit=20)
    assert in_flight == [1, 1, 1]
    assert all(load.done() and load.exception() is None for load in loads)
    assert (report.oldest_version, late_report.oldest_version) == (before, before + 1)
    assert report.newest_version == late_report.newest_version == before + 3
    longest = int(np.argmax(report.lengths))
    # The first step returns nothing, nor does the first one after a publication: a step has to be in flight again.
    assert runs_of(tokens, longest)[:2] == [(before, 4), (before + 1, 7)]
    assert runs_of(tokens, longest)[2][0] == before + 3, "no step came between the two publications"


def test_what_is_in_flight_of_a_group_that_is_cut_goes_to_nobody(engine: Driven) -> None:
    """Neither to a group of the same name, which comes at once, nor to one that goes on; nor does it end the engine."""
    in_flight, more = [], []

    def cut() -> None:
        in_flight.append(engine.steps_in_flight)
        engine.loop.cut("g")
        more.append(engine.generate("g", n=3, new_tokens=30))

    engine.plan((6, cut), (6, lambda: more.append(engine.publish())))
    other = engine.generate("other", n=3)
    report, _ = engine.check(engine.generate("g", n=3).result(HANG_SECONDS))
    assert in_flight == [1]
    assert [n for n, is_cut in zip(report.lengths, report.cut, strict=True) if is_cut] == [5] * sum(report.cut)
    assert any(report.cut)
    again, _ = engine.check(more[0].result(HANG_SECONDS), over_limit=30)
    assert not any(again.cut)
    engine.check(other.result(HANG_SECONDS))


def test_a_group_that_is_cut_before_its_first_token_is_nothing(engine: Driven) -> None:
    engine.plan((1, lambda: engine.loop.cut("g")))
    assert engine.generate("g").result(HANG_SECONDS) is None
    engine.check(engine.generate("g").result(HANG_SECONDS))


def test_two_groups_of_one_name_are_two_groups(engine: Driven) -> None:
    for made in [engine.generate("g", n=3), engine.generate("g", n=3)]:
        engine.check(made.result(HANG_SECONDS))


def test_a_token_behind_the_end_of_a_response_is_dropped_and_its_step_ends_before_weights_come(engine: Driven) -> None:
    for attempt in range(100):  # until the longest of the responses ends at a stop token, not at the limit
        engine.plan()
        report, _ = engine.check(engine.generate(f"g {attempt}", n=2).result(HANG_SECONDS))
        engine.publish().result(HANG_SECONDS)
        if not report.truncated[int(np.argmax(report.lengths))]:
            assert engine.seen[-2:] == [1, 0], "the step with the token too many was in flight, and was waited for"
            return
    raise AssertionError("no response ended by itself")


def test_weights_that_do_not_come_in_flight_wait_for_the_groups_begun(engine: Driven) -> None:
    engine.loop._updates = WeightUpdates(in_flight=False)
    before, later = engine.version, []
    engine.plan((3, lambda: later.append(engine.publish())), (4, lambda: later.append(engine.generate("second"))))
    first, _ = engine.check(engine.generate("first").result(HANG_SECONDS))
    assert first.version_tokens == (sum(first.lengths),)
    later[0].result(HANG_SECONDS)
    second, _ = engine.check(later[1].result(HANG_SECONDS))
    assert (first.oldest_version, second.oldest_version, second.newest_version) == (before, before + 1, before + 1)


def test_with_a_recomputed_cache_tokens_are_wholly_of_their_version_though_responses_lose_their_place(
    engine: Driven,
) -> None:
    """More responses than the cache has room for, so that vLLM puts some aside with a step of theirs in flight."""
    engine.loop._updates = WeightUpdates(recompute_kv_cache=True)
    before = engine.preempted
    engine.plan(*((step, lambda: engine.publish()) for step in (5, 17, 29, 30)))
    reports = [
        engine.check(made.result(HANG_SECONDS), pure=True)[0]
        for made in [engine.generate(f"group {index}", n=12) for index in range(3)]
    ]
    assert max(len(report.version_tokens) for report in reports) >= 4
    assert engine.preempted > before, "there was room for all"


class Kernel:
    """Stands for a Triton kernel: called as ``kernel[grid](...)``."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __getitem__(self, grid: object) -> Callable[..., object]:
        return self._function


def test_the_second_model_runner_puts_log_probs_where_the_first_one_does(
    engine: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on Triton alone, which a CPU lacks; so its way from logits to outputs goes over two kernels in torch.

    Three requests: the second one is in the middle of its prompt, so that what is sampled for it does not count.
    """
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu.async_utils import AsyncOutput
    from vllm.v1.worker.gpu.sample import logprob
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    def topk(found: torch.Tensor, logits: torch.Tensor, _: int, ids: torch.Tensor, *rest: int, **blocks: int) -> None:
        found.copy_(torch.log_softmax(logits, dim=-1).gather(1, ids))

    monkeypatch.setattr(logprob, "triton", SimpleNamespace(next_power_of_2=lambda number: number))
    monkeypatch.setattr(logprob, "_topk_log_softmax_kernel", Kernel(topk))
    monkeypatch.setattr(logprob, "_ranks_kernel", Kernel(lambda *_, **blocks: None))
    logits, sampled = torch.randn(3, 19, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 17])
    output = AsyncOutput(
        ModelRunnerOutput(req_ids=["a", "b", "c"], req_id_to_index={"a": 0, "b": 1, "c": 2}),
        SamplerOutput(sampled[:, None], logprob.compute_topk_scores(logits, 0, sampled), None, None),
        torch.tensor([1, 0, 1]),
        torch.cuda.Stream(),
        torch.cuda.Stream(),
    ).get_output()
    assert output.sampled_token_ids == [[4], [], [17]]
    assert output.logprobs is not None
    group = UnfinishedGroup(name="g", prompt_ids=PROMPT, done=Future(), unfinished=2)
    for row in (0, 2):
        response = UnfinishedResponse(group)
        group.responses.append(response)
        ids = output.sampled_token_ids[row]
        response.add(ids, output.logprobs.slice_request(row, len(ids)).logprobs)
        response.close_run(0)
        group.end_one()
    made = group.done.result(timeout=0)
    assert made is not None
    assert made[1].response_ids.tolist() == [4, 17]
    expected = torch.log_softmax(logits, dim=-1)[[0, 2], [4, 17]]
    assert made[1].rollout_logprobs.tolist() == pytest.approx(expected.tolist())
