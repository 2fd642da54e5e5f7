"""Builds what evaluates: the sets of problems with their sampling, over engines and reward workers."""

from __future__ import annotations

from collections.abc import Callable

from dapo_openrlhf.backend.run.actor_settings import max_num_seqs
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.remote_engine import ObjectStoreTexts
from dapo_openrlhf.backend.run.reward_pool import RewardPool
from dapo_openrlhf.config.evaluation import EvalSet
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.evaluation import ProblemResult
from dapo_openrlhf.pipeline.evaluator import Evaluator, ProblemSet
from dapo_openrlhf.pipeline.ports import Sampling


def evaluator(
    config: Config,
    inputs: Inputs,
    engines: EnginePool,
    rewards: RewardPool,
    on_answered: Callable[[ProblemResult], None] = lambda result: None,
) -> Evaluator:
    """The evaluator of the sets in ``inputs``."""
    return Evaluator(
        {
            one.key: ProblemSet(
                problems=problems,
                sampler=Sampler(
                    engines=engines,
                    sampling=_sampling(one),
                    timeout=config.async_.generate_timeout,
                    seed=config.train.seed,
                ),
            )
            for one, problems in zip(config.eval_sets, inputs.problems, strict=True)
        },
        scorer=rewards,
        texts=ObjectStoreTexts(timeout=config.async_.reward_timeout),
        responses_at_once=_responses_at_once(config),
        on_answered=on_answered,
    )


def problems_at_once(config: Config, inputs: Inputs) -> int:
    """Number of problems of an evaluation that are in progress at once, on average over its sets."""
    sizes = [len(problems) for problems in inputs.problems]
    responses = sum(size * one.n_samples_per_prompt for size, one in zip(sizes, config.eval_sets, strict=True))
    return max(1, _responses_at_once(config) * sum(sizes) // responses)


def _responses_at_once(config: Config) -> int:
    """They fill each engine, and as many again wait, so that no engine runs empty between two problems."""
    return 2 * config.vllm.num_engines * max_num_seqs(config)


def _sampling(one: EvalSet) -> Sampling:
    return Sampling(
        n=one.n_samples_per_prompt,
        max_new_tokens=one.max_new_tokens,
        temperature=one.temperature,
        top_p=one.top_p,
    )
