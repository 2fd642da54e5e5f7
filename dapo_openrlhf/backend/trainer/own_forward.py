"""A causal language model's own forward pass, with logits computed chunk by chunk (runs inside the trainer's ranks).

What a family does between decoder and logits (scales, soft caps, a cut to the vocabulary) is written only in its
``forward``. So that method runs here, with stand-ins for two of its modules: the output layer, which returns what is
computed from its logits instead of the logits, and the decoder, whose output is remembered. To find out what becomes of
a chunk of the output layer's logits, the same ``forward`` runs again with the remembered output of the decoder and with
that chunk as the output of the output layer, which costs no module's computation.

Each module is called once per pass, whatever the number of chunks: under ZeRO-3 a call is a collective, and ranks have
different numbers of tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Tail: TypeAlias = Callable[[Tensor], Tensor]
"""What the model computes from its output layer's logits [rows, vocabulary]."""

Read: TypeAlias = "Callable[[Callable[[Tensor], Tensor], Tail, Tensor], tuple[Tensor, ...]]"
"""Gets the output layer, the tail and hidden states [R, hidden size], and returns results computed from their
logits."""


class UnknownHead(ValueError):
    """The model's output layer is not where its logits can be intercepted."""


def takes_router_logits(model: type) -> bool:
    """Whether a class's ``forward`` can be asked for its routers' logits."""
    return "output_router_logits" in inspect.signature(model.forward).parameters  # type: ignore[attr-defined]  # of a module


class OwnForward:
    """The forward pass of ``type(model)``, intercepted at its output layer."""

    def __init__(self, model: Any) -> None:
        """Raise :class:`UnknownHead` if the model has no output layer of its own behind a decoder."""
        self._model = model
        self._head = model.get_output_embeddings()
        self._decoder = model.base_model
        owners = [name for name, module in model.named_modules() if module is self._head]
        if not isinstance(self._head, nn.Module) or not owners or self._decoder is model:
            raise UnknownHead(
                f"{type(model).__name__} has no output layer that is a module of its own behind a decoder"
            )
        owner, _, self._head_name = owners[0].rpartition(".")
        self._head_owner = model.get_submodule(owner)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        """Number of logits of a token."""
        self._routed = takes_router_logits(type(model))

    def __call__(
        self, read: Read, positions: Tensor, inputs: Mapping[str, Any], *, balance: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The result of ``read`` for the hidden states before the output layer at ``positions`` [R] of all tokens.

        And the model's own load-balancing loss over all tokens; 0 without ``balance``.
        """
        outputs: dict[nn.Module, Any] = {}
        found: list[tuple[Tensor, ...]] = []

        def decode(module: nn.Module, *arguments: Any, **settings: Any) -> Any:
            output = module(*arguments, **settings)
            outputs[module] = _first_token(output)
            return output

        def recall(module: nn.Module, *arguments: Any, **settings: Any) -> Any:
            return outputs[module] if module in outputs else module(*arguments, **settings)

        def catch(_: nn.Module, hidden: Tensor) -> Tensor:
            if found:
                raise UnknownHead(f"{type(self._model).__name__}.forward calls its output layer more than once")
            layer = self._head.forward
            with instead(self._head, "forward", lambda states: read(layer, tail, states)):
                found.append(self._head(hidden.flatten(0, -2)[positions]))
            return hidden.new_zeros(1, 1, self.vocabulary)

        def tail(logits: Tensor) -> Tensor:
            output = self._run(recall, lambda *_: logits[None], inputs)
            whole: Tensor = output[0] if isinstance(output, tuple) else output.logits
            return whole[0]

        output = self._run(decode, catch, inputs, balance=balance)
        if not found:
            raise UnknownHead(f"{type(self._model).__name__}.forward does not call its output layer")
        imbalance: Tensor = output.aux_loss.float() if balance else torch.zeros((), device=positions.device)
        return found[0], imbalance

    def _run(
        self,
        decode: Callable[..., Any],
        catch: Callable[..., Tensor],
        inputs: Mapping[str, Any],
        *,
        balance: bool = False,
    ) -> Any:
        """The output of the model's own forward pass with stand-ins for decoder and output layer.

        Routers are asked for their logits only with ``balance``, whatever the model's configuration says.
        """
        model = self._model
        asked = {"output_router_logits": balance} if self._routed else {}
        decoder, head = _StandIn(self._decoder, decode), _StandIn(self._head, catch)
        with instead(model, model.base_model_prefix, decoder), instead(self._head_owner, self._head_name, head):
            return type(model).forward(model, use_cache=False, **asked, **inputs)


class _StandIn:
    """A stand-in for a module, equal to it in everything but calls.

    Calls of the module and of its children go to ``call``, with the called module as the first argument.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self._module = module
        self._call = call

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self._call(self._module, *arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return _StandIn(value, self._call) if isinstance(value, nn.Module) else value


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set ``owner.name`` to ``value`` in this block; a module's child of that name stays registered, but hidden."""
    attributes = owner.__dict__
    missing = object()
    before = attributes.get(name, missing)
    attributes[name] = value
    try:
        yield
    finally:
        if before is missing:
            del attributes[name]
        else:
            attributes[name] = before


def _first_token(output: Any) -> Any:
    """A decoder's output with its hidden states cut to one token, without gradient."""
    if isinstance(output, Tensor):
        return output[:, :1].detach()
    if isinstance(output, tuple):
        return (_first_token(output[0]), *output[1:])
    hidden = output.last_hidden_state
    return type(output)(**{**output, "last_hidden_state": torch.zeros_like(hidden[:, :1])})
