"""Loads a trainer rank's models under DeepSpeed, as OpenRLHF's settings say (runs inside the trainer's ranks)."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from dapo_openrlhf.backend.trainer.adapters import WithoutAdapters
from dapo_openrlhf.backend.trainer.agreement import Comparison
from dapo_openrlhf.backend.trainer.average import Average
from dapo_openrlhf.backend.trainer.critic import Critic
from dapo_openrlhf.backend.trainer.deepspeed_model import DeepSpeedModel
from dapo_openrlhf.backend.trainer.finite import refuse_not_finite
from dapo_openrlhf.backend.trainer.models import Models
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.policy import Policy, Wanted
from dapo_openrlhf.backend.trainer.rank import Rank
from dapo_openrlhf.backend.trainer.reports import RankReady
from dapo_openrlhf.backend.trainer.saving import Saving
from dapo_openrlhf.backend.trainer.sharded_model import Forward
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import Beginning, TrainSettings
from dapo_openrlhf.backend.trainer.strategy import Strategy
from dapo_openrlhf.backend.trainer.weights_out import WeightsOut


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRank:
    """A rank's models, held by the objects that work with them."""

    rank: Rank
    weights: WeightsOut
    saving: Saving
    comparison: Comparison
    ready: RankReady


def load_rank(strategy: Strategy, settings: TrainSettings, beginning: Beginning, *, spans: Spans) -> LoadedRank:
    """Load the models and put them under DeepSpeed. Every rank must call it once ``strategy`` has joined the ranks.

    Raises ``NotFinite`` for a model that is not finite, and ``RuntimeError`` for a checkpoint in which something is
    missing.
    """
    args, peers = strategy.args, Peers.joined()
    trusted = beginning.trust_remote_code
    models = Models(strategy, device=strategy.torch_device, trust_remote_code=trusted)
    packing, temperature = models.packing, settings.loss.temperature
    path = args.actor.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
    language_model = _under_deepspeed(models.language_model(path), strategy, args.actor.adam, beginning)
    reference: Forward | None = None
    if beginning.reference is not None:
        alone = models.lora is None
        reference = _reference(models, strategy, beginning.reference) if alone else WithoutAdapters(language_model)
    trained, critic = [language_model], None
    if settings.advantages.critic:
        model = models.critic(args.critic.model_name_or_path)
        value_model = _under_deepspeed(model, strategy, args.critic.adam, beginning)
        trained.append(value_model)
        critic = Critic(value_model, packing, clip=args.critic.value_clip)
    average = Average(language_model, beta=args.train.ema_beta) if args.train.enable_ema else None
    saving = Saving(trained, tokenizer, keep_critic=args.critic.save_value_network, peers=peers, average=average)
    if beginning.checkpoint is not None:
        saving.resume(beginning.checkpoint, beginning.updates_done)
    refuse_not_finite(f"the model {path} cannot be trained", trained, peers)
    wanted = Wanted(entropy_gradient=settings.loss.entropy_coef != 0, balance=settings.loss.aux_loss_coef > 0)
    policy = Policy(language_model, packing, temperature=temperature, reference=reference, wanted=wanted)
    return LoadedRank(
        rank=Rank(policy, critic, settings, peers=peers, spans=spans, average=average),
        weights=WeightsOut(trained, peers, version=beginning.first_step),
        saving=saving,
        comparison=Comparison(language_model, packing, temperature=temperature),
        ready=RankReady(parameters=language_model.parameter_count, attention=packing.attention_name),
    )


def _under_deepspeed(model: Any, strategy: Strategy, adam: SimpleNamespace, beginning: Beginning) -> DeepSpeedModel:
    """Put a model under DeepSpeed with its own optimizer; policy and critic share the schedule."""
    actor = strategy.args.actor
    optimizer = {
        "optim": "adam",
        "adam": vars(adam),
        "lr_scheduler": actor.lr_scheduler,
        "lr_warmup_ratio": actor.lr_warmup_ratio,
        "max_norm": actor.max_norm,
        "scheduler_steps": beginning.total_updates,
    }
    return DeepSpeedModel.prepared(model, strategy, optimizer)


def _reference(models: Models, strategy: Strategy, path: str) -> Forward:
    engine: Any = strategy.prepare(models.language_model(path).requires_grad_(False))
    engine.eval()
    reference: Forward = engine
    return reference
