"""The rollout worker: an actor around one vLLM engine."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from dapo_openrlhf.backend.engine.episode import Means
from dapo_openrlhf.backend.engine.episode_group import EpisodeGroup
from dapo_openrlhf.backend.engine.gate import Gate
from dapo_openrlhf.backend.engine.rollout_worker import EpisodePlan, WeightUpdates
from dapo_openrlhf.backend.messages import (
    GenerationReport,
    GroupTexts,
    GroupTokens,
    Meeting,
    TransferAborted,
    WeightAck,
    WeightLayout,
)
from dapo_openrlhf.backend.openrlhf_bases import rollout_actor
from dapo_openrlhf.environments.messages import EnvironmentFailed
from dapo_openrlhf.pipeline.ports import Health, Sampling
from dapo_openrlhf.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EngineActor(rollout_actor()):  # type: ignore[misc]  # see openrlhf_bases
    """OpenRLHF's rollout actor with its own generation and weight loading. Implements ``RolloutWorker``.

    Kept from OpenRLHF: device and environment set-up, and placement. Replaced: requests (one per group instead of one
    per response), outputs (arrays instead of one object per token) and weight updates (buckets for
    vLLM's layerwise reload, acknowledged with version and checksum, instead of a broadcast per parameter).

    Generation runs on the engine loop's thread and decoding on another one. This actor's event loop only passes work
    on, so a pause, a health check or a publication never queues behind token generation.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        *,
        name: str,
        engine_args: Mapping[str, Any],
        stop_ids: Sequence[int],
        decode_queries: bool,
        version: int,
        updates: WeightUpdates,
        episodes: EpisodePlan | None = None,
    ) -> None:
        """``version`` is that of the weights in ``engine_args["model"]``. A response ends at any of ``stop_ids``.

        ``episodes``: needed for :meth:`play` only.
        """
        import vllm
        from packaging import version as packaging_version
        from transformers import AutoTokenizer

        from dapo_openrlhf.backend.engine.loop import EngineLoop

        backend = engine_args.get("distributed_executor_backend", "uni")
        if os.environ.get("CUDA_VISIBLE_DEVICES"):
            self._configure_device_env(backend=backend, bundle_indices=None, num_gpus=0)
            # If Ray is told not to hide other GPUs, the base class keeps only the first of this actor's own.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, ray.get_gpu_ids()))
        self._configure_vllm_env(packaging_version, vllm, full_determinism=False)
        self._tokenizer = AutoTokenizer.from_pretrained(
            engine_args["model"], trust_remote_code=engine_args["trust_remote_code"]
        )
        self._stop_ids = stop_ids
        self._unheard = unheard_ids(self._tokenizer, stop_ids)
        self._episodes = episodes
        self._playing: dict[str, EpisodeGroup] = {}
        self._gate = Gate() if episodes is not None and not updates.in_flight else None
        self._texts = ThreadPoolExecutor(max_workers=1)  # one worker, because fast tokenizers are not thread-safe
        self._decode_queries = decode_queries
        self._phase = "loading its model"
        self._loop = EngineLoop(engine_args, name=name, stop_ids=stop_ids, version=version, updates=updates)
        await asyncio.wrap_future(self._loop.start())
        self._enter(f"generating with version {version}")

    async def ready(self) -> int:
        """The process id. Returns once the model is loaded."""
        return os.getpid()

    async def phase(self) -> str:
        """The engine's last phase of a publication, for the error message if it is late. Answers even while busy."""
        return self._phase

    async def health(self) -> Health:
        """Whether this process answers, and how far its loop is; answers even while busy."""
        return Health(doing=self._phase, steps_begun=self._loop.steps_begun, steps_ended=self._loop.steps_ended)

    async def generate(
        self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling
    ) -> tuple[GenerationReport, GroupTokens, GroupTexts] | tuple[None, None, None]:
        """Sample a group, or return (None, None, None) if it is cut before each of its responses has a token.

        Raises ``messages.BadPrompt``, and ``ArithmeticError`` for log-probabilities that are not finite.
        """
        made = await asyncio.wrap_future(self._loop.generate(group_id, prompt_ids, sampling))
        if made is None:
            return None, None, None  # not an exception, which Ray would report although nobody waits for the group
        report, tokens = made
        _check_finite(group_id, report, tokens)
        return report, tokens, await asyncio.get_running_loop().run_in_executor(self._texts, self._decode, tokens)

    async def play(
        self, group_id: str, prompt: Prompt, sampling: Sampling
    ) -> tuple[GenerationReport, GroupTokens, GroupTexts] | tuple[None, None, None]:
        """As :meth:`generate`, with an environment for each rollout. Raises also ``EnvironmentFailed``."""
        assert self._episodes is not None
        means = Means(
            actions=self._loop,
            texts=TextThread(
                self._tokenizer, self._texts, vocabulary=self._loop.vocabulary, environment=self._episodes.name
            ),
            environments=self._episodes.environments,
            stop_ids=self._stop_ids,
        )
        group = EpisodeGroup(group_id, prompt, sampling.n, means=means, rules=self._episodes.rules)
        self._playing[group_id] = group
        try:
            async with self._gate.rollouts() if self._gate else nullcontext():
                made = await group.play(sampling)
        finally:
            del self._playing[group_id]
        if made is None:
            return None, None, None
        _check_finite(group_id, *made[:2])
        return made

    async def sample_random(self, lengths: Sequence[int], new_tokens: int, temperature: float) -> list[GroupTokens]:
        """Sample at most ``new_tokens`` tokens after a prompt of random ordinary tokens of each of ``lengths``."""
        dice, ids = np.random.default_rng(0), self._ordinary_ids()
        sampling = Sampling(n=1, max_new_tokens=new_tokens, temperature=temperature, top_p=1.0)
        prompts = [dice.choice(ids, length).tolist() for length in lengths]
        futures = [self._loop.generate(f"random {index}", prompt, sampling) for index, prompt in enumerate(prompts)]
        made = [await asyncio.wrap_future(future) for future in futures]
        return [group[1] for group in made if group is not None]

    def _ordinary_ids(self) -> list[int]:
        """Ids of tokens that are not special and have a row in the model's embedding."""
        rows = self._loop.vocabulary
        ids = {*self._tokenizer.get_vocab().values()} - {*self._tokenizer.all_special_ids}
        return sorted(token for token in ids if token < rows) or list(range(rows))

    async def cut(self, group_id: str) -> None:
        """End a group with the tokens generated so far; see :meth:`EngineLoop.cut`, :meth:`EpisodeGroup.cut`."""
        if (playing := self._playing.get(group_id)) is not None:
            playing.cut()
        else:
            self._loop.cut(group_id)

    async def load_weights(self, version: int, layout: WeightLayout, *buckets: NDArray[np.uint8]) -> WeightAck:
        """Replace the weights between two steps by those in the buckets; running requests continue with them."""
        from dapo_openrlhf.backend.transfer.receivers.driving import load

        return await self._take(version, lambda core: load(core, layout, buckets, self._enter))

    async def join_transfer(self, meeting: Meeting, first: int, size: int) -> None:
        """Join a transfer group. Blocks until all members have joined; raises ``TransferAborted`` if they do not."""
        from dapo_openrlhf.backend.transfer.receivers.driving import join

        self._enter("joining the trainer's transfer group")
        await asyncio.wrap_future(self._loop.between_steps(lambda core: join(core, meeting, first, size)))

    async def receive_weights(self, version: int, layout: WeightLayout) -> WeightAck:
        """Replace the weights by those sent to the transfer group; running requests continue with them.

        If it raises ``TransferAborted``, nothing is generated until weights are loaded.
        """
        from dapo_openrlhf.backend.transfer.receivers.driving import receive

        return await self._take(version, lambda core: receive(core, layout, self._enter))

    async def _take(self, version: int, load: Callable[[Any], int]) -> WeightAck:
        self._enter(f"waiting for the running {'rollouts' if self._gate else 'step'} to end")
        try:
            async with self._gate.weights() if self._gate else nullcontext():
                checksum, spans = await asyncio.wrap_future(self._loop.load_weights(version, load))
        except TransferAborted:
            self._enter(f"waiting for weights, since a transfer of version {version} was given up")
            raise
        self._enter(f"generating with version {version}")
        return WeightAck(version=version, checksum=checksum, spans=tuple(spans))

    def _decode(self, tokens: GroupTokens) -> GroupTexts:
        """Decode a group's texts.

        A query is decoded as a whole, as in OpenRLHF: two parts decoded separately may differ. Responses keep special
        tokens that may be part of an answer, such as ``Answer:`` in some vocabularies.
        """
        responses = [tokens.response(index)[0] for index in range(len(tokens.offsets) - 1)]
        heard: list[Any] = [response[np.isin(response, self._unheard, invert=True)] for response in responses]
        texts = self._tokenizer.batch_decode(heard, skip_special_tokens=False)
        if not self._decode_queries:
            return GroupTexts(responses=tuple(texts))
        whole: list[Any] = [np.concatenate([tokens.prompt_ids, response]) for response in responses]
        queries = self._tokenizer.batch_decode(whole, skip_special_tokens=False)
        return GroupTexts(responses=tuple(texts), queries=tuple(queries))

    def _enter(self, phase: str) -> None:
        self._phase = phase


class TextThread:
    """A tokenizer, used on one thread only, because fast tokenizers are not thread-safe."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, thread: ThreadPoolExecutor, *, vocabulary: int, environment: str
    ) -> None:
        """``vocabulary``: number of rows of the model's embedding; ``environment``: whose texts are encoded."""
        self._tokenizer: Any = tokenizer
        self._thread = thread
        self._vocabulary = vocabulary
        self._environment = environment

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        decode = functools.partial(self._tokenizer.decode, ids, skip_special_tokens=False)
        return str(await asyncio.get_running_loop().run_in_executor(self._thread, decode))

    async def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that the tokenizer would put around it.

        Raises ``EnvironmentFailed`` for a token that has no row in the model's embedding.
        """
        encode = functools.partial(self._tokenizer, text, add_special_tokens=False)
        ids: list[int] = [*(await asyncio.get_running_loop().run_in_executor(self._thread, encode))["input_ids"]]
        if (unknown := max(ids, default=0)) >= self._vocabulary:
            raise EnvironmentFailed(
                "environment_error",
                f"{self._environment}: what it says holds {await self.decode([unknown])!r}, token {unknown}, and the model's "
                f"embedding has rows 0 to {self._vocabulary - 1}; the tokenizer knows more tokens than the model",
            )
        return ids


def _check_finite(group_id: str, report: GenerationReport, tokens: GroupTokens) -> None:
    if not np.isfinite(tokens.rollout_logprobs).all():
        bad = int((~np.isfinite(tokens.rollout_logprobs)).sum())
        raise ArithmeticError(
            f"{bad} of {len(tokens.rollout_logprobs)} log-probs of {group_id} are not finite, with the weights of versions "
            f"{report.oldest_version} to {report.newest_version}: the engine's model or its memory is broken"
        )


def unheard_ids(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> list[int]:
    """Response tokens that rewards do not see: those that end it, and those that the tokenizer puts around a text.

    Some tokenizers pad or begin with a word of ordinary text, such as ``!``, which is part of what a response says.
    """
    around: dict[Any, Any] = {
        tokenizer.bos_token_id: tokenizer.bos_token,
        tokenizer.eos_token_id: tokenizer.eos_token,
        tokenizer.pad_token_id: tokenizer.pad_token,
    }
    return sorted({*stop_ids, *(token for token, text in around.items() if token is not None and _marked(text))})


def _marked(text: str) -> bool:
    """Whether a token is no word, but between signs as ``<pad>``, ``[PAD]`` and ``</s>`` are."""
    return len(text) > 2 and not text[0].isalnum() and not text[-1].isalnum()
