"""``dapo-openrlhf verify``: the very reward of a training, over a file of responses and gold answers, without Ray."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_reward, load_config
from dapo_openrlhf.config.reward import RewardSection
from dapo_openrlhf.rewards.gold import gold_answer
from dapo_openrlhf.rewards.printed import Limited
from dapo_openrlhf.rewards.process import Judge, Judgement, JudgeUnavailable
from dapo_openrlhf.rewards.question import RULE, Question
from dapo_openrlhf.rewards.settings import JudgeSettings, judge_settings

MOST_ERRORS_PRINTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the file."""

    line: int
    response: str
    label: object
    """The row's own; the rule takes text or a number."""
    prompt: str
    """Empty where the file has none; the rule looks whether a thought is opened at its end."""
    columns: Mapping[str, object]
    """The row's others, for functions that ask for them."""
    expected: bool | None = None
    """The verdict that the file itself gives, as ``expect``."""


def verify(options: argparse.Namespace, overrides: Mapping[str, object]) -> int:
    """Judge every line of ``options.file``; returns the exit status."""
    settings = judge_settings(reward_section(options, overrides))
    cases = read_cases(
        options.file,
        response_key=options.response_key,
        answer_key=options.answer_key,
        prompt_key=options.prompt_key,
        by_rule=RULE in settings.sources,
    )
    if options.json and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: there is no folder {options.json.parent}")
    if options.json and options.json.is_dir():
        raise ConfigError(f"--json {options.json}: is a folder, not a file")
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least 1 process is needed")
    workers = min(options.workers, len(cases))
    started = time.monotonic()
    try:
        judgements, seconds = judge_all(cases, settings, workers=workers)
    except JudgeUnavailable as error:
        raise ConfigError(f"{', '.join(settings.sources)}: {error}") from error
    _print_summary(options.file, cases, judgements, seconds=seconds, loading=time.monotonic() - started - seconds)
    if options.json:
        options.json.write_text(json.dumps(_result(judgements, seconds), indent=1) + "\n")
    return 0


def reward_section(options: argparse.Namespace, overrides: Mapping[str, object]) -> RewardSection:
    """The reward settings of ``--config``, ``--reward``, ``--weights`` and ``--reward.key VALUE``, the last wins."""
    given = {"reward.remote_url": options.reward, "reward.weights": options.weights}
    settings = {name: value for name, value in given.items() if value} | dict(overrides)
    if options.config:
        return load_config(options.config, settings).reward
    for name in settings:
        if not name.startswith("reward."):
            raise ConfigError(f"{name}: verify takes reward.* settings only, without --config")
    return build_reward({name.removeprefix("reward."): value for name, value in settings.items()}, source="the reward")


def read_cases(file: Path, *, response_key: str, answer_key: str, prompt_key: str, by_rule: bool = True) -> list[Case]:
    """All lines of a JSON Lines file. Raises ``ConfigError`` that names file and line of a broken one.

    ``by_rule``: gold answers must be such as the rule can compare with.
    """
    if file.suffix == ".parquet":
        raise ConfigError(f"{file}: responses are read from JSON Lines, not from parquet")
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long, nested too deeply
                raise ConfigError(f"{file}, line {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{file}, line {number}: holds {type(row).__name__}, not a mapping")
            response, label = row.get(response_key), row.get(answer_key)
            if not isinstance(response, str):
                raise ConfigError(
                    f"{file}, line {number}: {response_key!r} (--response-key) is no text: {response!r:.80}"
                )
            if by_rule:
                try:
                    gold_answer(label)
                except ValueError as error:
                    raise ConfigError(f"{file}, line {number}: {answer_key!r} (--answer-key): {error}") from error
            prompt = row.get(prompt_key)
            cases.append(
                Case(
                    line=number,
                    response=response,
                    label=label,
                    prompt=prompt if isinstance(prompt, str) else "",
                    columns={k: v for k, v in row.items() if k not in (response_key, answer_key, prompt_key)},
                    expected=row["expect"] if isinstance(row.get("expect"), bool) else None,
                )
            )
    if not cases:
        raise ConfigError(f"{file} holds no responses")
    return cases


def judge_all(cases: Sequence[Case], settings: JudgeSettings, *, workers: int) -> tuple[list[Judgement], float]:
    """Judgements in the order of the cases, and the seconds they took once the rewards were loaded."""
    judgements: dict[int, Judgement] = {}
    todo = iter(enumerate(cases))
    printed = Limited(lambda line: print(line, file=sys.stderr, flush=True), time.monotonic)
    turn = threading.Lock()
    stopped = threading.Event()

    def work(judge: Judge) -> None:
        while not stopped.is_set():
            with turn:
                index, case = next(todo, (-1, None))
            if case is None:
                return
            question = Question(
                responses=[case.response],
                queries=[case.prompt + case.response],
                prompt=case.prompt,
                label=case.label,
                columns=case.columns,
            )
            (judgements[index],) = judge.judge_all(question)
            for line in judge.printed():
                printed(line)

    with contextlib.ExitStack() as stack:
        judges = [stack.enter_context(Judge(settings)) for _ in range(workers)]
        for judge in judges:
            judge.wait_ready()
        started = time.monotonic()
        with ThreadPoolExecutor(workers) as threads:
            try:
                list(threads.map(work, judges))
            finally:
                stopped.set()  # an interrupt ends it after the responses in progress
        seconds = time.monotonic() - started
    return [judgements[index] for index in range(len(cases))], seconds


def _print_summary(
    file: Path, cases: Sequence[Case], judgements: Sequence[Judgement], *, seconds: float, loading: float
) -> None:
    counts = _counts(judgements)
    print(
        f"{file}: {len(cases)} responses: {counts['right']} right, {counts['wrong']} wrong, {counts['errors']} errors\n"
        f"{seconds:.2f} s, {len(cases) / max(seconds, 1e-9):,.0f} verifications per second; loading took {loading:.2f} s"
    )
    _print_agreement(cases, judgements)
    errors = [(case.line, judged.error) for case, judged in zip(cases, judgements, strict=True) if judged.error]
    for line, error in errors[:MOST_ERRORS_PRINTED]:
        print(f"  line {line}: {error}")
    if len(errors) > MOST_ERRORS_PRINTED:
        print(f"  and {len(errors) - MOST_ERRORS_PRINTED} more")


def _print_agreement(cases: Sequence[Case], judgements: Sequence[Judgement]) -> None:
    """How many verdicts are those that the file gives, and which lines are not."""
    expecting = [pair for pair in zip(cases, judgements, strict=True) if pair[0].expected is not None]
    if not expecting:
        return
    other = [
        case.line for case, judged in expecting if judged.score is None or judged.score.correct is not case.expected
    ]
    lines = f"; not in lines {', '.join(map(str, other[:20]))}{', ...' if len(other) > 20 else ''}" if other else ""
    print(f"as judged there: {len(expecting) - len(other)} of {len(expecting)}{lines}")


def _counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    scores = [judgement.score for judgement in judgements if judgement.score is not None]
    right = sum(score.correct for score in scores)
    return {"right": right, "wrong": len(scores) - right, "errors": len(judgements) - len(scores)}


def _result(judgements: Sequence[Judgement], seconds: float) -> dict[str, object]:
    """What ``--json`` writes; ``correct`` is null exactly where ``error`` is not."""
    verdicts = [
        {
            "correct": judgement.score.correct if judgement.score else None,
            "reward": judgement.score.reward if judgement.score else None,
            "error": judgement.error,
            "seconds": round(judgement.seconds, 6),
        }
        for judgement in judgements
    ]
    return {**_counts(judgements), "seconds": round(seconds, 3), "verdicts": verdicts}
