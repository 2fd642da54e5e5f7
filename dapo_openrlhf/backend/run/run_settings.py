"""What the configuration says of how a run draws its prompts, and when it ends."""

from __future__ import annotations

from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.curriculum import Difficulty
from dapo_openrlhf.pipeline.ending import Limits
from dapo_openrlhf.pipeline.mixture import Drawing


def limits(config: Config) -> Limits:
    """When the run ends before its last step."""
    return Limits(
        target=config.eval.target,
        patience=config.eval.patience,
        hours=config.train.max_hours,
        metric=config.ckpt.best_metric_key,
    )


def drawing(config: Config, inputs: Inputs) -> Drawing:
    """How the run draws its prompts."""
    rollout, data = config.rollout, config.data
    difficulty = Difficulty(
        batch_size=rollout.batch_size, responses=rollout.n_samples_per_prompt, lengths=inputs.prompt_lengths
    )
    return Drawing(
        sizes=() if data.prompt_probs is None else inputs.set_sizes,
        shares=(1.0,) if data.prompt_probs is None else tuple(p / sum(data.prompt_probs) for p in data.prompt_probs),
        difficulty=difficulty if data.curriculum else None,
    )
