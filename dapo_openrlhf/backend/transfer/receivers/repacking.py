"""Does what vLLM's reload leaves out on a CPU, where layers compute with packed copies of their weights."""

from __future__ import annotations

from typing import Any

from torch.nn import Module
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead


def repack(model: Module, model_config: Any) -> None:
    """Repack the weights that nothing else repacks, once a publication has been processed."""
    tied = model_config.hf_text_config.tie_word_embeddings
    for layer in model.modules():
        match layer:
            case RoutedExperts():
                kernel: Any = layer.quant_method.moe_kernel
                # In 0.26 there is none, and it packs at every load; later versions pack at the first one only.
                if kernel is not None:
                    kernel.fused_experts.process_weights_after_loading(layer)
            case ParallelLMHead() if tied:  # has no parameter of its own, so nothing repacked it
                layer.quant_method.process_weights_after_loading(layer)
