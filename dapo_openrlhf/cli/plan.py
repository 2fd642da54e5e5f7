"""The command ``dapo-openrlhf plan``: predicts a run before it is started, or what another one would have been."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.cli.outputs import check_output, check_picture, write_json
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.plan.gpus import GPUS
from dapo_openrlhf.report.run_folder import run_called

if TYPE_CHECKING:
    from dapo_openrlhf.plan.splits import Advice, Candidate

DEFAULTS: Mapping[str, Any] = {
    "gpu": "h100",
    "per_node": 8,
    "response_spread": 0.8,
    "prompt_tokens": 150,
    "pass_rate": 0.6,
    "reward_seconds": 0.5,
}
"""What is assumed before any run."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add all options."""
    command.usage = "dapo-openrlhf plan RUN [--json FILE] [--picture FILE]\n       dapo-openrlhf plan --config FILE --devices N [options] [--section.key VALUE ...]"
    command.description = (
        "Predict step time, throughput, idle shares and policy age for every K and every division of the devices between "
        "engines and trainer: the pipeline's own code in virtual time. RUN: over models that are fitted to that run's event "
        "log (latest stands for runs/latest). --config: over models of GPUs, before any of them is rented."
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw throughput over age there, as PNG")
    before = command.add_argument_group("before any run, with --config")
    before.add_argument("--config", type=Path, metavar="FILE", help="the run's configuration")
    before.add_argument("--gpu", choices=sorted(GPUS), help=f"kind of all GPUs (default {DEFAULTS['gpu']})")
    before.add_argument("--devices", type=int, metavar="N", help="number of GPUs, 2 or more")
    before.add_argument(
        "--per-node", type=int, metavar="N", help=f"GPUs of one machine (default {DEFAULTS['per_node']})"
    )
    before.add_argument(
        "--response-tokens", type=float, metavar="MEAN", help="mean length (default a third of rollout.max_new_tokens)"
    )
    before.add_argument(
        "--response-spread",
        type=float,
        metavar="CV",
        help=f"standard deviation of the lengths over their mean (default {DEFAULTS['response_spread']}, a heavy tail)",
    )
    before.add_argument(
        "--prompt-tokens", type=int, metavar="N", help=f"length of a prompt (default {DEFAULTS['prompt_tokens']})"
    )
    before.add_argument(
        "--pass-rate",
        type=float,
        metavar="SHARE",
        help=f"of groups that carry a gradient (default {DEFAULTS['pass_rate']})",
    )
    before.add_argument(
        "--reward-seconds", type=float, metavar="S", help=f"to score a group (default {DEFAULTS['reward_seconds']})"
    )


BEFORE = ("devices", "response_tokens", *DEFAULTS)
"""Options that a plan from a run has no use for."""


def plan_run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print a plan from a run, which ``rest`` names; returns the exit status.

    Raises ``ConfigError`` for what cannot be planned.
    """
    from dapo_openrlhf.plan.after import WhatIf
    from dapo_openrlhf.plan.fit import Material
    from dapo_openrlhf.plan.processes import Processes
    from dapo_openrlhf.plan.reading import read_run
    from dapo_openrlhf.plan.run_words import check, fitted_words, measured, run_dict, variant_lines
    from dapo_openrlhf.plan.splits import advise
    from dapo_openrlhf.plan.words import ages, table

    folder = _folder(options, rest)
    _check_outputs(options)
    run = read_run(folder)
    found, material = measured(run.life), Material(run.life, run.settings)
    with Processes() as processes:
        what_if = WhatIf(material, processes)
        candidates = [*what_if.every_k(), *what_if.other_splits()]
        advice = advise(candidates)
        variants = what_if.variants(advice.chosen)
        itself = what_if.itself().prediction
    line, doubt = check(found, itself)
    print(f"{folder}: {found}\n{fitted_words(what_if.best)}\n{line}")
    notes = [*run.notes, *([doubt] if doubt else [])]
    print("".join(f"note: {note}\n" for note in notes))
    print(table(candidates, advice))
    chosen = advice.chosen.prediction
    print(f"\nages at K = {chosen.max_staleness}, by groups: {ages(chosen)}")
    print(f"other settings at K = {chosen.max_staleness}, {advice.chosen.split}:", *variant_lines(variants), sep="\n")
    _recommend(advice)
    _write(options, candidates, advice, {"notes": notes} | run_dict(found, what_if.best, itself, variants))
    return 0


def plan(config: Config, options: argparse.Namespace) -> int:
    """Print a plan before any run; returns the exit status. Raises ``ConfigError`` for what cannot be planned."""
    from dapo_openrlhf.plan.before import Expected, choices, scenario_of
    from dapo_openrlhf.plan.roofline import Machine
    from dapo_openrlhf.plan.shape import ModelShape
    from dapo_openrlhf.plan.splits import advise, search
    from dapo_openrlhf.plan.words import table

    if options.devices is None:
        raise ConfigError("--devices N is needed with --config: the number of GPUs to divide")
    for option, number in (("--devices", options.devices), ("--per-node", options.per_node)):
        if number is not None and number < 1:
            raise ConfigError(f"{option}: {number} is no number of GPUs; use 1 or more")
    _check_outputs(options)
    given = {name: value for name, value in vars(options).items() if value is not None}
    chosen = {**DEFAULTS, "prompt_tokens": min(DEFAULTS["prompt_tokens"], config.data.max_len), **given}
    expected = Expected(
        response_tokens=options.response_tokens,
        response_spread=chosen["response_spread"],
        prompt_tokens=chosen["prompt_tokens"],
        pass_rate=chosen["pass_rate"],
        reward_seconds=chosen["reward_seconds"],
    )
    machine, work = Machine(gpu=GPUS[chosen["gpu"]], per_node=chosen["per_node"]), expected.work(config)
    shape = ModelShape.read(Path(config.actor.model_name_or_path))
    found = search(choices(machine, shape, options.devices), scenario_of(config, machine, shape, work))
    advice = advise(found)
    print(table(found, advice))
    if config.train.agent_func_path is not None:
        print("\nnote: the environments of train.agent_func_path, and the time that they take, are not in this plan")
    _recommend(advice)
    _write(options, found, advice, {})
    return 0


def _folder(options: argparse.Namespace, rest: Sequence[str]) -> Path:
    """The run to plan from. Raises ``ConfigError`` where there is none, or anything that such a plan has no use for."""
    if not rest or rest[0].startswith("-"):
        raise ConfigError("plan RUN, from a run's folder, or plan --config FILE --devices N, before any run, is needed")
    given = [f"--{name.replace('_', '-')}" for name in BEFORE if vars(options)[name] is not None] + list(rest[1:])
    if given:
        raise ConfigError(
            f"{' '.join(given)}: a plan from a run takes everything from the run {rest[0]}; leave this out, or leave out the "
            "run and give --config to plan before any"
        )
    return run_called(Path(rest[0]))


def _check_outputs(options: argparse.Namespace) -> None:
    check_output("--json", options.json)
    check_picture("--picture", options.picture)


def _recommend(advice: Advice) -> None:
    chosen = advice.chosen
    print(
        f"\nrecommended: async.max_staleness {chosen.prediction.max_staleness}, vllm.num_engines {chosen.split.engines}, "
        f"vllm.tensor_parallel_size {chosen.split.tensor_parallel}, {chosen.split.ranks} trainer ranks: {advice.reason}"
    )


def _write(
    options: argparse.Namespace, candidates: Sequence[Candidate], advice: Advice, more: Mapping[str, Any]
) -> None:
    """Write the files that were asked for."""
    from dapo_openrlhf.plan.words import as_dict

    if options.json is not None:
        write_json(options.json, {**as_dict(candidates, advice), **more})
    if options.picture is not None:
        from dapo_openrlhf.plan.picture import draw

        draw(candidates, advice, options.picture)
