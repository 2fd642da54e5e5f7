"""The command ``dapo-openrlhf plan``: predicts a run before it is started."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.plan.gpus import GPUS
from dapo_openrlhf.whole_file import write_whole


def add_options(command: argparse.ArgumentParser) -> None:
    """Add all options."""
    command.description = (
        "Predict step time, throughput, idle shares and policy age for every division of some GPUs between engines and "
        "trainer and every K, before any of them is rented: the pipeline's own code in virtual time, over models of the GPUs."
    )
    command.add_argument("--config", type=Path, metavar="FILE", required=True, help="the run's configuration")
    command.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="kind of all GPUs (default h100)")
    command.add_argument("--devices", type=int, required=True, metavar="N", help="number of GPUs, 2 or more")
    command.add_argument("--per-node", type=int, default=8, metavar="N", help="GPUs of one machine (default 8)")
    command.add_argument(
        "--response-tokens", type=float, metavar="MEAN", help="mean length (default a third of rollout.max_new_tokens)"
    )
    command.add_argument(
        "--response-spread",
        type=float,
        default=0.8,
        metavar="CV",
        help="standard deviation of the lengths over their mean (default 0.8, a heavy tail)",
    )
    command.add_argument("--prompt-tokens", type=int, default=150, metavar="N", help="length of a prompt (default 150)")
    command.add_argument(
        "--pass-rate", type=float, default=0.6, metavar="SHARE", help="of groups that carry a gradient (default 0.6)"
    )
    command.add_argument(
        "--reward-seconds", type=float, default=0.5, metavar="S", help="to score a group (default 0.5)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw throughput over age there, as PNG")


def plan(config: Config, options: argparse.Namespace) -> int:
    """Print the plan; returns the exit status. Raises ``ConfigError`` for what cannot be planned."""
    from dapo_openrlhf.plan.before import Expected, choices, scenario_of
    from dapo_openrlhf.plan.roofline import Machine
    from dapo_openrlhf.plan.shape import ModelShape
    from dapo_openrlhf.plan.splits import advise, search
    from dapo_openrlhf.plan.words import as_dict, table

    expected = Expected(
        response_tokens=options.response_tokens,
        response_spread=options.response_spread,
        prompt_tokens=options.prompt_tokens,
        pass_rate=options.pass_rate,
        reward_seconds=options.reward_seconds,
    )
    machine, work = Machine(gpu=GPUS[options.gpu], per_node=options.per_node), expected.work(config)
    shape = ModelShape.read(Path(config.actor.model_name_or_path))
    found = search(choices(machine, shape, options.devices), scenario_of(config, machine, shape, work))
    advice = advise(found)
    print(table(found, advice))
    chosen = advice.chosen
    print(
        f"\nrecommended: async.max_staleness {chosen.prediction.max_staleness}, vllm.num_engines {chosen.split.engines}, "
        f"vllm.tensor_parallel_size {chosen.split.tensor_parallel}, {chosen.split.ranks} trainer ranks: {advice.reason}"
    )
    if options.json is not None:
        write_whole(options.json, json.dumps(as_dict(found, advice), indent=2) + "\n")
    if options.picture is not None:
        from dapo_openrlhf.plan.picture import draw

        draw(found, advice, options.picture)
    return 0
