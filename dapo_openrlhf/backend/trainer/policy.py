"""The policy of one trainer rank, and its reference model (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dapo_openrlhf.backend.trainer.collate import Tensors
from dapo_openrlhf.backend.trainer.packing import Inputs
from dapo_openrlhf.backend.trainer.sharded_model import Forward, ShardedModel


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an update's forward pass computes besides log-probabilities; each takes memory or time."""

    entropy_gradient: bool = False
    """Whether entropies are differentiable."""
    balance: bool = False
    """Whether the load-balancing loss of a mixture of experts is computed."""


class Policy:
    """A language model whose forward pass is :func:`logprobs.token_logprobs`, and optionally a reference model.

    The reference model is never trained.
    """

    def __init__(
        self,
        model: ShardedModel,
        inputs: Inputs,
        *,
        temperature: float,
        reference: Forward | None,
        wanted: Wanted = Wanted(),
    ) -> None:
        """``temperature``: of the distribution whose log-probabilities both models compute.

        ``wanted``: of :meth:`forward`.
        """
        self.model = model
        self._inputs = inputs
        self._temperature = temperature
        self._reference = reference
        self._wanted: dict[str, Any] = {name: True for name, value in asdict(wanted).items() if value}

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference model, to which a KL is measured."""
        return self._reference is not None

    def forward(self, batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies [B, T] of a micro-batch's responses, 0 beyond a response; and its load-balancing loss.

        Here and below log-probabilities and entropies are those of the distribution that sampled: where the sampler kept
        fewer tokens than all, that over these tokens, also the reference model's.
        """
        return self._scores(self.model, batch, **self._wanted)

    def logprobs(self, batch: Tensors) -> Tensor:
        """Log-probabilities [B, T], without the entropies."""
        return self._scores(self.model, batch)[0]

    def ref_logprobs(self, batch: Tensors) -> Tensor:
        """The reference model's log-probabilities [B, T]; there must be a reference model."""
        assert self._reference is not None
        return self._scores(self._reference, batch)[0]

    def _scores(self, model: Forward, batch: Tensors, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        if batch.kept is not None:
            options["kept"] = batch.kept
        logprobs, entropies, imbalance = model(
            **self._inputs.inputs(batch), targets=batch.targets, temperature=self._temperature, **options
        )
        return batch.unflatten(logprobs), batch.unflatten(entropies), imbalance
