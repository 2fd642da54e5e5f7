"""On real vLLM: after a publication an engine is what it would be had it been started from the saved model.

For each family a tiny random model. The reference is an engine started from the folder that ``save_pretrained`` writes, so
names, splits and what a CPU build packs are all compared; many linear layers keep a packed copy only, so that log-probs
show what parameters do not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import distinct_model
from garbage import exempt_what_is_left, imports_exempt
from torch import Tensor

from dapo_openrlhf.backend.transfer import buckets, checksum
from dapo_openrlhf.backend.transfer.receivers import WORKER_EXTENSION

pytestmark = pytest.mark.real

PROMPT = [5, 9, 3, 17, 8, 2, 11, 30, 4, 7]
NEW_TOKENS = 6
TIED = {"tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": TIED,
    "Qwen3": TIED,
    "Mistral, window": {"head_dim": 32},
    "Gemma 2": {},
    "Gemma 3": {},
    "Phi-3": {},
    "Granite": {},
    "Cohere": {},
    "Cohere 2": {},
    "OLMo 2": {},
    "StarCoder2": {},
    "GPT-2": {},
    "GPT-NeoX": {},
    "Qwen2-MoE": {},
    "Qwen3-MoE": {},
    "Mixtral": {},
    "OLMoE": {},
    "Granite MoE": {},
    "PhiMoE": {},
    "DeepSeek-V3": {},
    "GLM-4-MoE": {},
    "LFM2": {"conv_dim": 64, "conv_L_cache": 4, "block_dim": 64, "block_ff_dim": 96, "block_multiple_of": 32},
}
"""With settings of their own."""
RENAMED = (
    "Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE", "Granite MoE", "PhiMoE", "DeepSeek-V3", "GLM-4-MoE", "GPT-NeoX",
)  # fmt: skip
"""Families whose checkpoint has other names than their modules."""


@pytest.fixture(scope="module", autouse=True)
def _in_this_process(module_settings: pytest.MonkeyPatch) -> Iterator[None]:
    """No warm-up, no second process, no minutes of looking at model classes in processes of their own."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }.items():
        module_settings.setenv(name, value)
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.transformers.base import Base

    # A family that vLLM runs through transformers' own class would leave that class changed for every test after these.
    module_settings.setattr(Base, "_decorate_for_torch_compile", lambda self: None)
    module_settings.setattr(buckets, "BUCKET_BYTES", 20_000)
    module_settings.setattr(registry, "_run_in_subprocess", lambda look: look())
    with imports_exempt():
        yield


@pytest.fixture(scope="module")
def module_settings() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


PARAMETERS_ONLY = ("PhiMoE", "DeepSeek-V3", "LFM2")
"""vLLM loads these on a CPU, but has no kernels to run such small ones."""
HALF = ("LFM2",)
"""vLLM loads these on a CPU in bfloat16 only."""


class Engine:
    """vLLM's core on a model in a folder, and what is asked of it."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.core_client import InprocClient
        from vllm.v1.executor.abstract import Executor

        cleanup_dist_env_and_memory()  # one engine at a time: process groups are made for the model that comes first
        config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=64,
            max_num_seqs=2,
            kv_cache_memory_bytes=8 << 20,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            worker_extension_cls=WORKER_EXTENSION,
        ).create_engine_config()
        self.core = InprocClient(config, Executor.get_class(config), False)
        self.model: Any = self.core.engine_core.model_executor.driver_worker.worker.model_runner.model

    def publish(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """Pack into buckets as a trainer does, and load them."""
        from dapo_openrlhf.backend.messages import WeightLayout
        from dapo_openrlhf.backend.transfer.buckets import packed
        from dapo_openrlhf.backend.transfer.receivers.driving import load

        tensors = [(name, tensor.contiguous()) for name, tensor in named]
        layout = WeightLayout(
            names=tuple(name for name, _ in tensors),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors),
            shapes=tuple(tuple(tensor.shape) for _, tensor in tensors),
            sizes=tuple(tensor.nbytes for _, tensor in tensors),
        )
        made = [bucket.numpy() for bucket in packed(layout, tensors, torch.device("cpu"))]
        assert len(made) > 1, "layers begin in one bucket and end in another"
        sums, calls = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checksum, "bucket_sum", lambda bucket: sums.append(len(bucket)) or 0)
            rpc = self.core.collective_rpc
            patch.setattr(self.core, "collective_rpc", lambda name, **given: calls.append(name) or rpc(name, **given))
            load(self.core, layout, made, lambda phase: None)
        # Whatever the number of parameters: one sum and one call for each bucket, and two calls around them.
        assert sums == [len(bucket) for bucket in made]
        assert calls == ["begin_weights", *["take_bucket"] * len(made), "end_weights"]

    def parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def logprobs(self) -> list[tuple[int, float]]:
        """The likeliest tokens after a prompt, with their log-probs."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        self.core.add_request(
            EngineCoreRequest(
                request_id="request",
                prompt_token_ids=PROMPT,
                mm_features=None,
                sampling_params=SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True),
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )
        found: list[tuple[int, float]] = []
        while len(found) < NEW_TOKENS:
            for output in self.core.get_output().outputs:
                assert output.new_logprobs is not None
                found += zip(output.new_token_ids, output.new_logprobs.logprobs[:, 0].tolist(), strict=True)
        return found


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    """Starts engines, of which the last one is gone before the next one comes."""
    engines: list[Engine] = []

    def begin(folder: Path, dtype: str = "float32") -> Engine:
        for engine in engines:
            engine.core.shutdown()
            engine.model = None
        engines.clear()
        exempt_what_is_left()
        engines.append(Engine(folder, dtype))
        return engines[0]

    yield begin
    for engine in engines:
        engine.core.shutdown()
        engine.model = None


def saved(family: str, folder: Path, *, seed: int) -> Path:
    distinct_model(family, seed=seed, settings=FAMILIES[family]).save_pretrained(folder)
    return folder


def published(folder: Path) -> list[tuple[str, Tensor]]:
    """What a trainer publishes that was started from a folder."""
    from transformers import AutoModelForCausalLM

    from dapo_openrlhf.backend.trainer.parameters import Published

    return [*Published(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).tensors()]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_published_is_what_is_saved(family: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from dapo_openrlhf.backend.trainer.parameters import Published

    model = distinct_model(family, seed=0, settings=FAMILIES[family])
    model.save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    publication = Published(model)
    found = dict(publication.tensors())
    assert found.keys() == expected.keys() == set(publication.layout.names)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert publication.layout.shapes == tuple(tuple(tensor.shape) for tensor in found.values())
    assert (set(found) != {name for name, _ in model.named_parameters()}) == (family in RENAMED)


def test_a_model_is_saved_with_the_files_that_it_came_with(tmp_path: Path) -> None:
    """Those of published models name a temperature without ``do_sample``, which transformers refuses to save, as it does
    with a ``config.json`` that asks for attentions, which nobody here reads."""
    from transformers import AutoModelForCausalLM

    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    import_openrlhf_lightly()
    from dapo_openrlhf.backend.trainer.deepspeed_model import DeepSpeedModel
    from dapo_openrlhf.backend.trainer.models import Models

    came, saved = tmp_path / "model", tmp_path / "saved"
    distinct_model("Llama", seed=0).save_pretrained(came)
    defaults = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 5], "suppress_tokens": [4]}
    (came / "generation_config.json").write_text(json.dumps(defaults))
    config = json.loads((came / "config.json").read_text())
    asked = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    (came / "config.json").write_text(json.dumps(config | asked))
    model = Models(strategy_of_one_process(), device=torch.device("cpu")).language_model(str(came))
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "refused")
    held: Any = SimpleNamespace(inner=model)
    tokenizer: Any = SimpleNamespace(save_pretrained=lambda folder: None)
    DeepSpeedModel.write_whole(held, model.state_dict(), str(saved), tokenizer)
    assert defaults.items() <= json.loads((saved / "generation_config.json").read_text()).items()
    assert json.loads((saved / "config.json").read_text()) == config | {"use_cache": False}
    again = AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.generation_config.temperature == model.generation_config.temperature == 0.6


def strategy_of_one_process() -> Any:
    lora = SimpleNamespace(rank=0, alpha=16, target_modules=("all-linear",))
    ds = SimpleNamespace(attn_implementation="sdpa", param_dtype="fp32", use_liger_kernel=False, lora=lora)
    args = SimpleNamespace(ds=ds, actor=SimpleNamespace(gradient_checkpointing_enable=False))
    return SimpleNamespace(args=args, stage=2, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_model_is_the_saved_one(family: str, tmp_path: Path, start: Callable[..., Engine]) -> None:
    first, second = (saved(family, tmp_path / str(seed), seed=seed) for seed in range(2))
    weights = published(second)
    dtype = "bfloat16" if family in HALF else "float32"
    reference = start(second, dtype)
    runs = family not in PARAMETERS_ONLY
    expected, expected_logprobs = reference.parameters(), reference.logprobs() if runs else []
    engine = start(first, dtype)
    if runs:
        assert engine.logprobs() != expected_logprobs, "models that are alike would show nothing"
    engine.publish(iter(weights))
    actual = engine.parameters()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, actual[name])] == []
    if runs:
        assert engine.logprobs() == expected_logprobs


@pytest.mark.parametrize("family", ["Qwen2", "Mixtral"])
def test_a_publication_that_lacks_or_misnames_a_tensor_is_an_error(
    family: str, tmp_path: Path, start: Callable[..., Engine]
) -> None:
    from dapo_openrlhf.backend.messages import IncompleteWeights

    folder = saved(family, tmp_path / "model", seed=0)
    weights = published(folder)
    engine = start(folder)
    lost = next(name for name, _ in weights if "self_attn.k_proj" in name)
    with pytest.raises(IncompleteWeights, match=r"layers\.0\.self_attn\.qkv_proj\.weight \(6,144 of 8,192 elements\)"):
        engine.publish((name, tensor) for name, tensor in weights if name != lost)
