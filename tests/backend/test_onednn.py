"""Linear layers through oneDNN are torch's own: same outputs, same gradients, for any shape a model has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dapo_openrlhf.backend.trainer import onednn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (1, 300), (5,), (1, 1)])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain, fast = (nn.Sequential(nn.Linear(24, 56, bias=bias)) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    onednn.install(fast)
    gradients = []
    for model in (plain, fast):
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(*shape, 24, generator=generator, requires_grad=True)
        outputs = model(inputs)
        (outputs * torch.randn(outputs.shape, generator=generator)).sum().backward()
        gradients.append([outputs.detach(), inputs.grad, *(parameter.grad for parameter in model.parameters())])
    for torchs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


def test_a_model_may_change_an_output_in_place() -> None:
    """Gemma 3n scales one, OLMo cuts queries and keys off."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3))
    fast = nn.Sequential(nn.Linear(4, 3))
    fast.load_state_dict(plain.state_dict())
    onednn.install(fast)
    gradients = []
    for model in (plain, fast):
        inputs = torch.linspace(-2, 2, 40).view(1, 10, 4).requires_grad_()
        outputs = model(inputs)
        outputs.clamp_(-0.5, 0.5)
        outputs *= 3
        outputs.sum().backward()
        gradients.append([outputs.detach(), inputs.grad, *(parameter.grad for parameter in model.parameters())])
    cut = gradients[0][0].abs() == 1.5
    assert cut.any() and not cut.all()
    for torchs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


def test_what_needs_no_gradient_gets_none() -> None:
    layer = nn.Sequential(nn.Linear(4, 3)).requires_grad_(False)
    onednn.install(layer)
    inputs = torch.ones(2, 4, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None and layer[0].weight.grad is None and layer[0].bias.grad is None
    assert not layer(torch.ones(2, 4)).requires_grad


def test_only_plain_layers_in_float32_are_taken() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16), Special(4, 4))
    onednn.install(model)
    assert ["forward" in vars(layer) for layer in model] == [True, False, False]
