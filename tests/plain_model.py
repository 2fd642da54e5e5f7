"""The smallest ``ShardedModel``: a module of torch on one process with AdamW. And batches to train it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dapo_openrlhf.backend.messages import GroupTokens, WeightLayout, one_version
from dapo_openrlhf.backend.trainer.state_tree import HostCopies, Tree
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup, TrainBatch


class PlainModel:
    """No ranks, no parts, no schedule."""

    loss_scaled = False

    def __init__(self, module: nn.Module, *, lr: float, eps: float = 1e-8, max_norm: float = 0.0) -> None:
        """``max_norm``: gradients are clipped to it; 0 for not at all."""
        self.inner: Any = module
        self.device = next(module.parameters()).device
        self.learning_rate = lr
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=lr, eps=eps, weight_decay=0.0)
        self._max_norm = max_norm
        self._finished = False

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.inner.parameters())

    def __call__(self, **inputs: Any) -> Any:
        return self.inner(**inputs)

    def backward(self, share: Tensor, *, last: bool) -> None:
        assert not self._finished, "the last backward pass of this update has been"
        share.backward()  # type: ignore[no-untyped-call]
        self._finished = last

    def gradient_norm(self) -> Tensor:
        assert self._finished
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in self._gradients()]))

    def step(self, *, sound: bool) -> None:
        assert self._finished
        if sound:
            if self._max_norm:
                nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
            self._optimizer.step()
        self._optimizer.zero_grad()
        self._finished = False

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def held(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.inner.named_parameters():
            yield name, parameter.detach().view(-1)

    def owned(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.inner.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach().view(-1)

    def whole(self) -> PlainTensors:
        return PlainTensors(self.inner)

    def state(self) -> Tree:
        return {"model": dict(self.inner.state_dict()), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: Tree, *, updates_done: int) -> None:
        self.inner.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def copy_whole(
        self, copies: HostCopies | None, name: str, parts: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        tensors = dict(self.inner.state_dict())
        tensors |= {name: part.view(tensors[name].shape) for name, part in (parts or {}).items()}
        return {} if copies is None else copies.copy(tensors, name)

    def write_whole(self, tensors: Mapping[str, Tensor], folder: str, tokenizer: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), Path(folder) / "model.safetensors")


class PlainTensors:
    """A module's parameters."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        named = list(module.named_parameters())
        self.layout = WeightLayout(
            names=tuple(name for name, _ in named),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in named),
            shapes=tuple(tuple(tensor.shape) for _, tensor in named),
            sizes=tuple(tensor.nbytes for _, tensor in named),
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._module.named_parameters():
            yield name, tensor.detach()


class Bigram(nn.Module):
    """A language model: the logits of the next token are a row of one table."""

    def __init__(self, vocabulary: int, *, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)))

    def forward(
        self, *, input_ids: Tensor, positions: Tensor, targets: Tensor, temperature: float, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs and entropies [R], and no load-balancing loss."""
        rows = (self.table[input_ids[0, positions]] / temperature).log_softmax(-1)
        entropies = -(rows.exp() * rows).sum(-1).detach()
        return rows.gather(-1, targets[:, None]).squeeze(-1), entropies, torch.zeros(())


class TokenValues(nn.Module):
    """A critic: the value of a state is a number of its last token's."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, *, input_ids: Tensor, positions: Tensor, **_: Any) -> Tensor:
        """Values [R]."""
        return self.values[input_ids[0, positions]]


def random_batch(
    step: int, *, groups: int, responses: int, longest: int, vocabulary: int, first_token: int = 0, seed: int = 0
) -> tuple[TrainBatch, Mapping[int, GroupTokens]]:
    """Responses of random tokens, right where their length is odd, whose sampler gave each token about the same."""
    dice = np.random.default_rng((seed, step))
    tokens: dict[int, GroupTokens] = {}
    made = []
    for position in range(groups):
        lengths = [1, 2, *dice.integers(2, longest, responses - 2).tolist()]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens[position] = GroupTokens(
            prompt_ids=dice.integers(first_token, vocabulary, 3).astype(np.int32),
            response_ids=dice.integers(first_token, vocabulary, offsets[-1]).astype(np.int32),
            rollout_logprobs=(dice.normal(0.0, 0.1, offsets[-1]) - np.log(vocabulary)).astype(np.float32),
            offsets=offsets,
            versions=one_version(step, int(offsets[-1])),
        )
        rollouts = tuple(
            Rollout(length=n, truncated=False, cut=False, correct=n % 2 == 1, reward=1.0 if n % 2 else -1.0)
            for n in lengths
        )
        made.append(
            RolloutGroup(
                id=position,
                prompt=Prompt(id=position, text="", label=""),
                prompt_length=3,
                rollouts=rollouts,
                oldest_version=PolicyVersion(step),
                newest_version=PolicyVersion(step),
                engine=0,
                tokens=None,
            )
        )
    return TrainBatch(step=step, version=PolicyVersion(step), groups=tuple(made)), tokens
