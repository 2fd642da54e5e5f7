"""A plan before any run: scenarios from a configuration, a kind of GPU, and what responses are expected to be like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.plan.roofline import Machine, engine_fits, engine_speed, sync_speed, trainer_fits, trainer_speed
from dapo_openrlhf.plan.scenario import Scenario, Work
from dapo_openrlhf.plan.shape import ModelShape
from dapo_openrlhf.plan.splits import Split, splits

SAMPLES = 2000
"""Number of groups that are drawn, of which simulations draw again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What responses are expected to be like."""

    response_tokens: float | None
    """Mean length; None for a third of the limit."""
    response_spread: float
    """Standard deviation of the lengths over their mean."""
    prompt_tokens: int
    pass_rate: float
    """Share of groups that carry a gradient."""
    reward_seconds: float

    def work(self, config: Config) -> Work:
        """The work of a run with these responses. Raises :class:`ConfigError` for values out of range."""
        most = config.rollout.max_new_tokens
        mean = most / 3 if self.response_tokens is None else self.response_tokens
        for option, value, low, high in (
            ("--response-tokens", mean, 1, most),
            ("--response-spread", self.response_spread, 0, 10),
            ("--prompt-tokens", self.prompt_tokens, 1, config.data.max_len),
            ("--pass-rate", self.pass_rate, 0.02, 1),
            ("--reward-seconds", self.reward_seconds, 0, 3600),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{option}: {value:g} is out of range; use {low:g} to {high:g}")
        return Work.drawn(
            groups=SAMPLES,
            responses=config.rollout.n_samples_per_prompt,
            mean=mean,
            spread=self.response_spread,
            most=most,
            pass_rate=self.pass_rate if config.algo.dynamic_filtering_enable else 1.0,
            prompt_tokens=self.prompt_tokens,
            reward_seconds=self.reward_seconds,
        )


def choices(machine: Machine, shape: ModelShape, devices: int) -> list[Split]:
    """The divisions of the devices that the model fits into. Raises :class:`ConfigError` if there is none."""
    if devices < 2:
        raise ConfigError(f"--devices: {devices} cannot be divided between engines and trainer; use 2 or more")

    def fits(split: Split) -> bool:
        return engine_fits(machine, shape, tensor_parallel=split.tensor_parallel) and trainer_fits(
            machine, shape, ranks=split.ranks
        )

    found = list(splits(devices, per_node=machine.per_node, fits=fits))
    if not found:
        raise ConfigError(
            f"--devices: {shape.parameters / 1e9:.1f} billion parameters do not fit into {devices} GPUs of "
            f"{machine.gpu.memory / 1e9:.0f} GB, weights and KV cache in engines and 18 bytes a parameter in the trainer; use "
            "more or larger ones"
        )
    return found


def scenario_of(config: Config, machine: Machine, shape: ModelShape, work: Work) -> Callable[[Split], Scenario]:
    """The function that gives a split's scenario."""
    mean = work.tokens_per_group / config.rollout.n_samples_per_prompt

    def scenario(split: Split) -> Scenario:
        return Scenario(
            engines=split.engines,
            engine=engine_speed(
                machine, shape, tensor_parallel=split.tensor_parallel, context=work.prompt_tokens + mean
            ),
            trainer=trainer_speed(
                machine, shape, ranks=split.ranks, old_logprobs=config.async_.old_logprobs == "recompute"
            ),
            sync=sync_speed(machine, shape, tensor_parallel=split.tensor_parallel),
            work=work,
            batch_size=config.rollout.batch_size,
            max_staleness=config.async_.max_staleness,
            filtered=config.algo.dynamic_filtering_enable,
            over_sampling=config.async_.over_sampling_factor,
            cut_late=config.async_.cut_late,
        )

    return scenario
