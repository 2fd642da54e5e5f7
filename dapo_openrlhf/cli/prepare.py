"""The command ``dapo-openrlhf prepare``: converts a public data set to a prompt file with a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.heartbeat import waiting_for
from dapo_openrlhf.prepare.cleaning import LABEL_SHOWN, Cleaned, OnBroken, OnConflict, Rules, clean
from dapo_openrlhf.prepare.few_shot import read_turns
from dapo_openrlhf.prepare.formats import read_problems
from dapo_openrlhf.prepare.labels import is_integer
from dapo_openrlhf.prepare.output import manifest_path, write
from dapo_openrlhf.prepare.rows import Problem, Source
from dapo_openrlhf.prepare.sources import file_source, hugging_face_source, reasoning_gym_source
from dapo_openrlhf.prepare.templates import wrapper

CONFLICTS_SHOWN = 20
EXAMPLES_SHOWN = 3


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``prepare``."""
    command.description = "Writes one {input, label} per line, and beside it a manifest with counts and hashes."
    command.add_argument(
        "source",
        metavar="SOURCE",
        help=".jsonl, .json, .csv or .parquet file, hf:OWNER/NAME[@CONFIG][:SPLIT] or reasoning-gym:TASK",
    )
    command.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    formats = ("auto", "dapo-math", "gsm8k", "aime", "generic")
    command.add_argument("--format", choices=formats, default="auto", help="default auto: by the first row's columns")
    command.add_argument(
        "--input-key", metavar="KEY", help="column with the problem; a dotted path reaches into nested ones"
    )
    command.add_argument("--label-key", metavar="KEY", help="column with the answer")
    command.add_argument(
        "--template",
        default="dapo",
        metavar="dapo|none|TEXT",
        help="put around each problem; TEXT has a {} (default dapo)",
    )
    command.add_argument(
        "--few-shot",
        type=Path,
        metavar="FILE.jsonl",
        help="worked examples, an {input, response} per line, put before each problem as earlier turns of a chat",
    )
    _add_tokenizer(command)
    command.add_argument("--keep-duplicates", action="store_true", help="keep rows with the same prompt and answer")
    command.add_argument(
        "--conflicts",
        choices=get_args(OnConflict),
        default="drop",
        help="same prompt, other answer (default drop)",
    )
    command.add_argument("--require-integer", action="store_true", help="drop answers that are no integers")
    command.add_argument(
        "--broken", choices=get_args(OnBroken), default="error", help="rows without problem or answer (default error)"
    )
    command.add_argument(
        "--label-kind",
        choices=("answer", "any"),
        default="answer",
        help="answer: what the rule reward compares with; any: whatever text a reward of your own takes (default answer)",
    )
    gym = command.add_argument_group("reasoning-gym")
    gym.add_argument("--size", type=int, default=1000, metavar="N", help="items (default 1000)")
    gym.add_argument("--seed", type=int, default=0, metavar="N", help="different seeds share no item (default 0)")
    gym.add_argument("--task-setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of the task")
    gym.add_argument(
        "--task-label",
        choices=("auto", "answer", "entry"),
        default="auto",
        help="entry: what the task's own scorer needs, for data/reasoning_gym_reward.py (default auto: where answers "
        "are no integers)",
    )


def _add_tokenizer(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--chat-template", metavar="TOKENIZER", help="render the prompt with this tokenizer's chat template"
    )
    command.add_argument("--max-tokens", type=int, metavar="N", help="drop prompts of more tokens")
    command.add_argument("--tokenizer", metavar="TOKENIZER", help="counts them (default: that of --chat-template)")
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python that comes with a tokenizer; read it before"
    )


def prepare(options: argparse.Namespace) -> int:
    """Read, clean and write the problems; returns the exit status. Raises ``ConfigError``."""
    _check(options)
    wrap = wrapper(options.template)
    few_shot = file_source(options.few_shot) if options.few_shot else None
    turns = read_turns(few_shot, wrap) if few_shot else ()
    tokenizer = template = None
    if options.chat_template:
        from dapo_openrlhf.prepare.tokenizer import Tokenizer

        template = tokenizer = Tokenizer(
            options.chat_template, option="--chat-template", trust_remote_code=options.trust_remote_code
        )
        template.require_chat_template()
    if options.tokenizer:
        from dapo_openrlhf.prepare.tokenizer import Tokenizer

        tokenizer = Tokenizer(options.tokenizer, option="--tokenizer", trust_remote_code=options.trust_remote_code)

    def finished(problem: Problem) -> Problem:
        wrapped = problem.with_text(wrap).with_turns_before(turns)
        return template.render(wrapped) if template else wrapped

    with waiting_for(f"{options.source} to be loaded"):
        source = _source(options)
    answers = options.label_kind == "answer" and not source.name.startswith("reasoning-gym:")
    rows = read_problems(
        source,
        data_format=options.format,
        input_key=options.input_key,
        label_key=options.label_key,
        answers=answers,
    )
    with waiting_for(f"the rows of {source.name} to be read and cleaned"):
        cleaned = clean(
            rows,
            Rules(
                broken=options.broken,
                conflicts=options.conflicts,
                keep_duplicates=options.keep_duplicates,
                require_integer=options.require_integer,
                max_tokens=options.max_tokens,
            ),
            tokens=(lambda problem: tokenizer.count(finished(problem))) if tokenizer else None,
        )
        cleaned.problems = [finished(problem) for problem in cleaned.problems]
    if answers:
        with waiting_for("answers to be read as the rule reward reads them"):
            _note_unreadable(cleaned)
    with waiting_for(f"{options.output} to be written"):
        write(options.output, cleaned, source, _recorded(options, few_shot))
    _tell(options.output, cleaned, source)
    return 0


def _note_unreadable(cleaned: Cleaned) -> None:
    """Count the problems whose answer the rule reward cannot read, and note examples."""
    from dapo_openrlhf.rewards.golds import unreadable
    from dapo_openrlhf.rewards.settings import RewardSettings

    hard = {problem.label for problem in cleaned.problems if not is_integer(problem.label)}
    errors = unreadable(sorted(hard), RewardSettings()) if hard else {}
    for problem in cleaned.problems:
        if problem.label in errors:
            cleaned.found["unreadable_labels"] += 1
            cleaned.note("unreadable", f"{problem.where}: {problem.label[:LABEL_SHOWN]!r}: {errors[problem.label]}")


def _check(options: argparse.Namespace) -> None:
    if options.output.suffix != ".jsonl":
        raise ConfigError(f"--output: {options.output} does not end in .jsonl")
    if options.output.exists() and Path(options.source).exists() and options.output.samefile(options.source):
        raise ConfigError(f"--output: {options.output} is the source; choose another file")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise ConfigError(f"--max-tokens: {options.max_tokens} is not positive")
    if options.max_tokens is not None and not (options.tokenizer or options.chat_template):
        raise ConfigError(f"--max-tokens: {options.max_tokens} of whose tokens? Name a model with --tokenizer")


def _source(options: argparse.Namespace) -> Source:
    kind, _, name = options.source.partition(":")
    if kind == "reasoning-gym":
        return reasoning_gym_source(
            name,
            size=options.size,
            seed=options.seed,
            settings=dict(_setting(text) for text in options.task_setting),
            label=options.task_label,
        )
    return hugging_face_source(name) if kind == "hf" else file_source(Path(options.source))


def _setting(text: str) -> tuple[str, object]:
    import yaml

    name, found, value = text.partition("=")
    if not found:
        raise ConfigError(f"--task-setting: {text!r} is not of the form NAME=VALUE")
    return name, yaml.safe_load(value)


def _recorded(options: argparse.Namespace, few_shot: Source | None) -> dict[str, object]:
    """The options that determine the output; a file of examples is given by name and hash."""
    left_out = {"command", "source", "output"}
    if not options.source.startswith("reasoning-gym:"):
        left_out |= {"size", "seed", "task_setting", "task_label"}
    recorded = {name: value for name, value in vars(options).items() if name not in left_out}
    return recorded | {"few_shot": few_shot and {"name": few_shot.name, "sha256": few_shot.sha256()}}


def _tell(output: Path, cleaned: Cleaned, source: Source) -> None:
    found = cleaned.found
    print(f"{source.name}: {cleaned.read:,} rows with {found['unique_prompts']:,} different prompts")
    print(f"{output}: {len(cleaned.problems):,} written; dropped: {cleaned.drops}")
    labels = f"{found['non_integer_labels']:,} answers are no integers, {found['negative_labels']:,} are negative"
    print(f"{found['conflicting_prompts']:,} prompts have conflicting answers, {labels}")
    for conflict in cleaned.conflicts[:CONFLICTS_SHOWN]:
        print(f"  conflict: {conflict}")
    if found["answers_cut_off"]:
        print(f"{found['answers_cut_off']:,} chats ended in the assistant's answer, which was cut off")
    if found["unreadable_labels"]:
        print(
            f"{found['unreadable_labels']:,} answers cannot be read by the rule reward, and would be errors in training"
        )
    for kind in ("broken", "non_integer", "unreadable", "too_long"):
        for words in cleaned.examples.get(kind, [])[:EXAMPLES_SHOWN]:
            print(f"  {kind.replace('_', ' ')}: {words}")
    print(f"all of it is in {manifest_path(output)}")
