"""Compares the policy that is trained with the policy that samples (runs inside the trainer's ranks).

Sequences that engines sampled are scored three times: packed, as in training; one at a time by the model's own forward
pass with transformers' plainest attention; and once more in that way, with an additional rounding error in each linear
layer, which shows what differences the data type explains. Every rank must call the methods, since a forward pass is a
collective under ZeRO-3.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dapo_openrlhf.backend.messages import Agreement, Difference, GroupTokens, one_version
from dapo_openrlhf.backend.trainer.collate import Tensors, collate
from dapo_openrlhf.backend.trainer.families import UnfitModel
from dapo_openrlhf.backend.trainer.own_forward import instead
from dapo_openrlhf.backend.trainer.packing import Inputs
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.pipeline.batch import Sample

TF32_EPS = 2.0**-10
"""Relative precision of float32 on CUDA, where kernels may multiply in TF32."""

Rows = Sequence[NDArray[np.float32]]
"""For each sequence, the log-probabilities of all tokens but the first."""


class Comparison:
    """Scores sequences with one rank's language model, both packed and with the model's own forward pass."""

    def __init__(self, sharded: ShardedModel, inputs: Inputs, *, temperature: float) -> None:
        self._sharded = sharded
        self._model: Any = sharded.inner
        self._inputs = inputs
        self._temperature = temperature
        self._device = sharded.device
        kind = next(self._model.parameters()).dtype
        self._eps = TF32_EPS if kind == torch.float32 and self._device.type == "cuda" else torch.finfo(kind).eps

    @torch.no_grad()
    def agreement(self, engines: Sequence[Sequence[GroupTokens]]) -> Agreement:
        """Compare this trainer with its model's own forward pass, and with each engine.

        ``engines`` holds, for each engine, the groups that it sampled. Raises :class:`UnfitModel` for a model whose code asks
        something of packed sequences that they do not have.
        """
        responses = [list(_responses(groups)) for groups in engines]
        flat = [response for of_engine in responses for response in of_engine]
        sequences = [ids for ids, _ in flat]
        own = self.own(sequences)
        try:
            packed = self.packed(sequences)
        except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
            raise UnfitModel(
                f"{type(self._model).__name__}: the trainer's packed forward pass fails, which the model's own does not: "
                f"{type(error).__name__}: {error}. This family cannot be trained here; with another "
                "ds.attn_implementation it may"
            ) from error
        with self._rounding():
            rounded = self.own(sequences)
        scored = iter(packed)
        pairs = [[(next(scored)[-len(sampled) :], sampled) for _, sampled in of_engine] for of_engine in responses]
        return Agreement(
            architecture=type(self._model).__name__,
            eps=self._eps,
            packed=_difference(zip(packed, own, strict=True)),
            rounding=_difference(zip(rounded, own, strict=True)),
            engines=tuple(_difference(of_engine) for of_engine in pairs),
        )

    @torch.no_grad()
    def packed(self, sequences: Sequence[NDArray[np.int32]]) -> Rows:
        """Log-probabilities as the trainer computes them, with all sequences in one micro-batch."""
        batch = self._batch(sequences)
        inputs = self._inputs.inputs(batch)
        logprobs, *_ = self._sharded(**inputs, targets=batch.targets, temperature=self._temperature)
        lengths = [length - 1 for length in batch.lengths]
        by_index = {
            sample.group: row.cpu().numpy()
            for sample, row in zip(batch.samples, torch.split(logprobs, lengths), strict=True)
        }
        return [by_index[index] for index in range(len(sequences))]

    def _batch(self, sequences: Sequence[NDArray[np.int32]]) -> Tensors:
        samples = tuple(
            Sample(group=index, index=0, prompt_length=1, length=len(ids) - 1, advantage=0.0, trained=True)
            for index, ids in enumerate(sequences)
        )
        tokens = {index: _as_group(ids) for index, ids in enumerate(sequences)}
        return collate(samples, tokens, device=self._device)

    @torch.no_grad()
    def own(self, sequences: Sequence[NDArray[np.int32]]) -> Rows:
        """Log-probabilities that transformers' forward pass computes, one sequence at a time."""
        with self._own_forward():
            return [self._score(torch.from_numpy(ids.astype(np.int64)).to(self._device)) for ids in sequences]

    def _score(self, ids: Tensor) -> NDArray[np.float32]:
        logits = self._sharded(input_ids=ids[None], use_cache=False).logits[0, :-1].float() / self._temperature
        scores: NDArray[np.float32] = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0].cpu().numpy()
        return scores

    @contextmanager
    def _own_forward(self) -> Iterator[None]:
        """Run the model as transformers made it, in evaluation mode and with transformers' eager attention."""
        model = self._model
        with ExitStack() as stack:
            for module in model.modules():
                stack.enter_context(instead(module, "training", False))
            stack.enter_context(instead(model, "forward", types.MethodType(type(model).forward, model)))
            if model._supports_attention_backend:
                for config in {
                    id(c): c for m in model.modules() if (c := m.__dict__.get("config")) is not None
                }.values():
                    stack.enter_context(instead(config, "_attn_implementation_internal", "eager"))
            yield

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        """Perturb each linear layer's output by as much as its data type rounds."""
        dice = torch.Generator(self._device).manual_seed(0)

        def round_off(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            errors = torch.rand(output.shape, generator=dice, device=output.device, dtype=torch.float32) * 2 - 1
            return output + (output.float() * errors * self._eps).to(output.dtype)

        layers = [module for module in self._model.modules() if isinstance(module, nn.Linear)]
        handles = [module.register_forward_hook(round_off) for module in layers]
        yield
        for handle in handles:
            handle.remove()

    # ------------------------------------------------------------------ where a difference begins

    @torch.no_grad()
    def where_packed_differs(self, groups: Sequence[GroupTokens]) -> str:
        """The kind of layer from which on packed sequences give other results than the model's own forward pass."""
        sequences = [ids for ids, _ in _responses(groups)]
        batch = self._batch(sequences)
        ordered = [sequences[sample.group] for sample in batch.samples]
        alone = [self.packed([ids])[0] for ids in ordered]
        own_scores = self.own(ordered)
        limit = self._eps**0.5
        apart = _difference(zip(alone, own_scores, strict=True)).mean > limit
        whose = "" if apart else ", though each sequence alone comes out right: packed sequences are not kept apart"
        with self._layer_outputs() as own:
            self.own(ordered)
        with self._layer_outputs() as packed:
            self.packed(ordered)
        for index, name in enumerate(self._layer_names()):
            one = torch.cat([output[0] for output in own[index]])
            if [output.shape for output in packed[index]] != [(1, *one.shape)]:
                return f"sequences read in rows{whose}"
            if (packed[index][0][0] - one).norm() > 4 * limit * one.norm():
                return f"first in layer {index} ({name}){whose}"
        return f"only in what follows the last layer: output layer, scale or soft cap of the logits{whose}"

    def _layers(self) -> list[nn.Module]:
        count = self._model.config.get_text_config().num_hidden_layers
        lists = [m for m in self._model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        return list(lists[0]) if lists else []

    def _layer_names(self) -> list[str]:
        kinds = self._model.config.get_text_config().to_dict().get("layer_types")
        layers = self._layers()
        return list(kinds) if kinds is not None and len(kinds) == len(layers) else [type(m).__name__ for m in layers]

    @contextmanager
    def _layer_outputs(self) -> Iterator[list[list[Tensor]]]:
        """Hidden states that each layer returns: [layers][calls]."""
        found: list[list[Tensor]] = [[] for _ in self._layers()]

        def remember(kept: list[Tensor]) -> Callable[..., None]:
            return lambda _module, _inputs, output: kept.append(
                (output if isinstance(output, Tensor) else output[0]).float()
            )

        handles = [m.register_forward_hook(remember(kept)) for m, kept in zip(self._layers(), found, strict=True)]
        yield found
        for handle in handles:
            handle.remove()


def _responses(groups: Sequence[GroupTokens]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Each response with its prompt, and the log-probabilities that the engine gave to the response's tokens."""
    for group in groups:
        for index in range(len(group.offsets) - 1):
            ids, sampled = group.response(index)
            yield np.concatenate([group.prompt_ids, ids]), sampled


def _as_group(ids: NDArray[np.int32]) -> GroupTokens:
    """A sequence as a group whose prompt is the sequence's first token."""
    return GroupTokens(
        prompt_ids=ids[:1],
        response_ids=ids[1:],
        rollout_logprobs=np.zeros(len(ids) - 1, np.float32),
        offsets=np.asarray([0, len(ids) - 1]),
        versions=one_version(0, len(ids) - 1),
    )


def _difference(pairs: Any) -> Difference:
    distances = np.concatenate([np.abs(one - other) for one, other in pairs])
    return Difference(mean=float(distances.mean()), largest=float(distances.max()))
