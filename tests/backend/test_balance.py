"""The load-balancing loss of mixtures of experts over packed sequences is transformers' own over the same ones with padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCABULARY, random_model
from plain_model import Bigram, PlainModel, random_batch
from torch import Tensor, nn

from dapo_openrlhf.backend.run.step_statistics import step_statistics
from dapo_openrlhf.backend.trainer import attention, checkpointing, logprobs, rows
from dapo_openrlhf.backend.trainer.balance import why_not_balanced
from dapo_openrlhf.backend.trainer.packing import Packing
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.policy import Policy, Wanted
from dapo_openrlhf.backend.trainer.rank import Rank
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, GuardSettings, LossSettings, TrainSettings
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch

BALANCED = ("Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE", "gpt-oss", "PhiMoE")
LENGTHS = (9, 6, 2)


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def padded(model: Any) -> Tensor:
    """transformers' loss for the sequences side by side, whose padding its mask leaves out."""
    flat = [nn.functional.pad(ids, (0, LENGTHS[0] - len(ids))) for ids in sequences()]
    mask = torch.stack([(torch.arange(LENGTHS[0]) < length).long() for length in LENGTHS])
    loss: Tensor = model(
        input_ids=torch.stack(flat), attention_mask=mask, output_router_logits=True, use_cache=False
    ).aux_loss
    return loss


def packed(model: Any, *, balance: bool = True) -> tuple[Tensor, Tensor]:
    """Log-probs, and the loss for the same sequences one after the other, as the trainer computes them."""
    flat, starts = torch.cat(sequences()), torch.tensor([0, *LENGTHS]).cumsum(0)
    positions = torch.cat([torch.arange(start, start + n - 1) for start, n in zip(starts, LENGTHS, strict=False)])
    found, _, imbalance = model(
        input_ids=flat[None],
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        positions=positions,
        targets=flat[positions + 1],
        temperature=1.0,
        buckets=rows.make_buckets(LENGTHS, device=torch.device("cpu")),
        **({"balance": True} if balance else {}),
    )
    return found, imbalance


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", BALANCED)
def test_the_loss_and_its_gradient_are_transformers_own(
    name: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 3 * VOCABULARY)  # the forward pass's end runs several times
    attention.register()
    one, other = random_model(name, attn_implementation="eager"), random_model(name, attn_implementation=attention.NAME)
    assert why_not_balanced(other) is None
    logprobs.install(other)
    if checkpointed:
        checkpointing.install(other)
    expected, (_, found) = padded(one), packed(other)
    assert expected.item() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    expected.backward()
    found.backward()
    moved = 0
    for (parameter, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), parameter
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5 * max(1.0, float(a.grad.abs().max())))
            moved += bool(a.grad.any())
    assert moved > 2, "routers, and what lies below them"


def test_equal_loads_give_the_number_of_a_token_s_experts() -> None:
    """Two of four experts, all equally probable: 4 x (4 experts x 1/2 of the tokens x 1/4) = 2."""
    attention.register()
    model = random_model("Qwen3-MoE", attn_implementation=attention.NAME)
    logprobs.install(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.zero_()
    assert packed(model)[1].item() == pytest.approx(2.0)


def test_it_is_computed_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a model whose configuration asks for it in every forward pass."""
    import transformers.models.mixtral.modeling_mixtral as mixtral

    attention.register()
    model = random_model("Mixtral", settings={"output_router_logits": True}, attn_implementation=attention.NAME)
    logprobs.install(model)
    scores, _ = packed(model)
    monkeypatch.setattr(mixtral, "load_balancing_loss_func", lambda *_: pytest.fail("nobody has asked"))
    found, imbalance = packed(model, balance=False)
    assert imbalance.item() == 0 and not imbalance.requires_grad
    assert torch.equal(found, scores)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("Llama", {}, "LlamaForCausalLM is a dense model"),
        ("GPT-2", {}, "GPT2LMHeadModel is a dense model"),
        ("Mamba", {}, "MambaForCausalLM is a dense model"),
        ("Granite MoE", {}, "no load-balancing loss for GraniteMoeForCausalLM"),
        ("DeepSeek-V3", {}, "no load-balancing loss for DeepseekV3ForCausalLM"),
        ("GLM-4-MoE", {}, "no load-balancing loss for Glm4MoeForCausalLM"),
        ("Qwen3-Next", {}, "in rows, whose padding"),
        ("Qwen3-MoE", {"mlp_only_layers": [0, 1]}, "none of the layers"),
        ("Qwen3-MoE", {"num_experts": 1, "num_experts_per_tok": 1}, "is a dense model"),
    ],
)
def test_models_without_such_a_loss_are_refused_by_name(name: str, settings: dict[str, Any], reason: str) -> None:
    model = random_model(name, settings=settings)
    model.config.architectures = [type(model).__name__]
    assert reason in (why_not_balanced(model) or "")


class Unbalanced(Bigram):
    """Whose load-balancing loss is the number of its tokens times a parameter."""

    def __init__(self) -> None:
        super().__init__(11, seed=0)
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, *, input_ids: Tensor, balance: bool = False, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, entropies, nothing = super().forward(input_ids=input_ids, **inputs)
        return logprobs, entropies, self.factor * input_ids.numel() if balance else nothing


@pytest.mark.parametrize("coefficient", [0.0, 0.25])
def test_micro_batches_weigh_in_it_as_their_tokens_do(coefficient: float, tmp_path: Path) -> None:
    """Of N_i tokens each: sum N_i / N times 2 N_i; its derivative by the factor is the sum of N_i^2 / N."""
    model = Unbalanced()
    sharded = PlainModel(model, lr=0.0)
    loss = LossSettings(
        eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
        old_logprobs="recompute", is_correction_level="off", is_correction_mode="clip",
        is_correction_threshold=(0.0, 2.0), temperature=1.0, aux_loss_coef=coefficient,
    )  # fmt: skip
    nothing = AdvantageSettings(
        critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0, kl_estimator="k3"
    )
    settings = TrainSettings(
        loss=loss, advantages=nothing, guard=GuardSettings(max_bad_updates=1, folder=str(tmp_path))
    )
    policy = Policy(
        sharded,
        Packing(attention.NAME),
        temperature=1.0,
        reference=None,
        wanted=Wanted(balance=loss.aux_loss_coef > 0),
    )
    rank = Rank(policy, None, settings, peers=Peers(), spans=Spans("trainer 0"))
    batch, tokens = random_batch(0, groups=4, responses=4, longest=8, vocabulary=11)
    plan = PlanSettings(
        train_batch_size=16, max_epochs=1, max_tokens=40, overlong_filtering=True, seed=0, estimator="group_norm",
        loss_agg_mode="token-mean", longest_response=8,
    )  # fmt: skip
    (cut,) = plan_batch(batch, plan, ranks=1)
    (update,) = cut.updates
    counts = [sum(sample.tokens for sample in samples) for samples in update.micro_batches]
    assert len(set(counts)) > 1, "of unequal size"
    assert update.read_tokens == sum(counts) == sum(3 + r.length for g in batch.groups for r in g.rollouts)
    gradients = []
    sharded.step = lambda *, sound: gradients.append(model.factor.grad)  # type: ignore[method-assign]  # to look at them
    statistics = step_statistics([rank.train(cut, tokens)])
    mean = sum(count * count for count in counts) / sum(counts)
    if coefficient == 0:
        assert "aux_loss" not in statistics and gradients == [None]
        return
    assert statistics["aux_loss"] == pytest.approx(2 * mean)
    (gradient,) = gradients
    assert gradient is not None and gradient.item() == pytest.approx(coefficient * mean)
