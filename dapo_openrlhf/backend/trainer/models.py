"""The models of a trainer rank: loads them, and prepares them to run over packed micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from openrlhf.models.model import _get_critic_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from dapo_openrlhf.backend.openrlhf_bases import flash_attention_installed
from dapo_openrlhf.backend.trainer import adapters, attention, checkpointing, families, liger, logprobs, onednn, values
from dapo_openrlhf.backend.trainer.checkpoint_names import keep_used_conversions
from dapo_openrlhf.backend.trainer.packing import Packing
from dapo_openrlhf.backend.trainer.strategy import PARAM_DTYPES, Strategy

PLAIN_OUTPUT = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""What a config.json may say to the contrary makes forward passes larger or unreadable, and some of it cannot be saved."""


class Models:
    """Loads models as the strategy's settings say. All of them read packed sequences."""

    def __init__(self, strategy: Strategy, *, device: torch.device, trust_remote_code: bool = False) -> None:
        """``trust_remote_code``: whether Python that comes with a model may run."""
        attention.register()
        self._strategy = strategy
        self._device = device
        ds, wanted = strategy.args.ds, strategy.args.ds.attn_implementation
        self.packing = Packing(attention.implementation(wanted, flash_attention=flash_attention_installed()))
        self.lora = adapters.LoraSettings.of(ds.lora)
        """What adapters language models get; None: they are trained whole."""
        self._trusted = trust_remote_code
        self._options = {"dtype": PARAM_DTYPES[ds.param_dtype], "trust_remote_code": trust_remote_code}

    def language_model(self, path: str) -> Any:
        """A causal language model that computes :func:`logprobs.token_logprobs`, with adapters if there are to be any."""
        config = AutoConfig.from_pretrained(path, trust_remote_code=self._trusted, **PLAIN_OUTPUT)
        by_rows = self._by_rows(config)
        if self._strategy.args.ds.use_liger_kernel:
            liger.install(config)
        with self._partitioned_loading():
            model = AutoModelForCausalLM.from_pretrained(
                path, config=config, attn_implementation=self._attention_of(config), **self._options
            )
        if self.lora is not None:
            adapters.install(model, self.lora, seed=self._strategy.seed)
        logprobs.install(model, by_rows=by_rows)
        return self._prepared(model)

    def critic(self, path: str) -> Any:
        """OpenRLHF's critic, computing :func:`values.token_values`; a value head that ``path`` lacks is initialised.

        Only the class is OpenRLHF's; its loader is not used, because it does not support float32.
        """
        config = AutoConfig.from_pretrained(path, trust_remote_code=self._trusted, **PLAIN_OUTPUT)
        config.normalize_reward = False
        head = getattr(config, "value_head_prefix", self._strategy.args.ds.value_head_prefix)
        base: Any = AutoModel._model_mapping[type(config)]
        critic_class = _get_critic_model(base.__base__, base, head, packing_samples=True)
        by_rows = self._by_rows(config)
        with self._partitioned_loading():
            model, report = critic_class.from_pretrained(
                path,
                config=config,
                output_loading_info=True,
                attn_implementation=self._attention_of(config),
                **self._options,
            )
        values.install(model, new_head=f"{head}.weight" in report["missing_keys"], by_rows=by_rows)
        return self._prepared(model)

    def _by_rows(self, config: Any) -> bool:
        """Whether a family reads sequences side by side. Raises ``UnfitModel`` if ZeRO-3 rules that out."""
        reason = families.why_by_rows(config)
        if reason is not None and self._strategy.stage == 3:
            raise families.UnfitModel(
                f"{families.architecture(config)}: {reason}, so its sequences are read in rows, whose number differs from "
                "rank to rank, and that ds.zero_stage 3 does not allow; use ds.zero_stage 2"
            )
        return reason is not None

    def _attention_of(self, config: Any) -> str:
        by_rows = families.why_by_rows(config) is not None
        return families.rows_attention(config) if by_rows else self.packing.attention_name

    def _prepared(self, model: Any) -> Any:
        """Prepare a model so that it computes what an engine's does: without dropout, even while it is trained."""
        model.config.use_cache = False
        model.eval()
        keep_used_conversions(model)
        if self._device.type == "cpu":
            onednn.install(model)
        if self._strategy.args.actor.gradient_checkpointing_enable:
            checkpointing.install(model)
        return model

    @contextmanager
    def _partitioned_loading(self) -> Iterator[None]:
        """Load a ZeRO-3 model already partitioned, as transformers does while such a configuration object exists.

        This is for models that a rank cannot hold as a whole.
        """
        if self._strategy.stage != 3:
            yield
            return
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(self._strategy.get_ds_train_config())
        yield
        del alive
