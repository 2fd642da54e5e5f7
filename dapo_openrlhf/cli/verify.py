"""The command ``dapo-openrlhf verify``: scores a file of responses with the reward of training, without Ray."""

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

from dapo_openrlhf.cli.outputs import check_output, write_json
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_reward, load_config
from dapo_openrlhf.config.reward import RewardSection
from dapo_openrlhf.heartbeat import waiting_for
from dapo_openrlhf.rewards.gold import gold_answer
from dapo_openrlhf.rewards.printed import Limited
from dapo_openrlhf.rewards.process import RewardProcess, RewardUnavailable, Scored
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import RewardSettings, reward_settings

MOST_ERRORS_PRINTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the file."""

    line: int
    response: str
    label: object
    """The gold answer; the rule takes text or a number."""
    prompt: str
    """The prompt, empty where the file has none; the rule checks whether a thought is opened at its end."""
    columns: Mapping[str, object]
    """The row's other columns, for reward functions that ask for them."""
    expected: bool | None = None
    """The verdict that the file itself gives, as ``expect``."""


def verify(options: argparse.Namespace, overrides: Mapping[str, object]) -> int:
    """Score every line of ``options.file``; returns the exit status."""
    settings = reward_settings(reward_section(options, overrides))
    cases = read_cases(
        options.file,
        response_key=options.response_key,
        answer_key=options.answer_key,
        prompt_key=options.prompt_key,
        by_rule=any(source.needs_answer for source in settings.sources),
    )
    check_output("--json", options.json)
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least 1 process is needed")
    workers = min(options.workers, len(cases))
    started = time.monotonic()
    try:
        scored, seconds = score_all(cases, settings, workers=workers)
    except RewardUnavailable as error:
        raise ConfigError(f"{', '.join(source.name for source in settings.sources)}: {error}") from error
    _print_summary(options.file, cases, scored, seconds=seconds, loading=time.monotonic() - started - seconds)
    if options.json:
        write_json(options.json, _result(scored, seconds))
    return 0


def reward_section(options: argparse.Namespace, overrides: Mapping[str, object]) -> RewardSection:
    """The reward settings by ``--config``, ``--reward``, ``--weights``, ``--reward.key VALUE``; the last one wins."""
    given = {"reward.remote_url": options.reward, "reward.weights": options.weights}
    settings = {name: value for name, value in given.items() if value} | dict(overrides)
    if options.config:
        return load_config(options.config, settings).reward
    for name in settings:
        if not name.startswith("reward."):
            raise ConfigError(f"{name}: verify takes reward.* settings only, without --config")
    return build_reward({name.removeprefix("reward."): value for name, value in settings.items()}, source="the reward")


def read_cases(file: Path, *, response_key: str, answer_key: str, prompt_key: str, by_rule: bool = True) -> list[Case]:
    """All lines of a JSON Lines file. Raises ``ConfigError`` that names file and line of an invalid one.

    ``by_rule``: whether gold answers must be comparable by the rule.
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


def score_all(cases: Sequence[Case], settings: RewardSettings, *, workers: int) -> tuple[list[Scored], float]:
    """The scores in the order of the cases, and the seconds they took once the rewards were loaded."""
    scored: dict[int, Scored] = {}
    todo = iter(enumerate(cases))
    printed = Limited(lambda line: print(line, file=sys.stderr, flush=True), time.monotonic)
    turn = threading.Lock()
    stopped = threading.Event()

    def work(process: RewardProcess) -> None:
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
            (scored[index],) = process.score_all(question)
            for line in process.printed():
                printed(line)

    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(RewardProcess(settings)) for _ in range(workers)]
        with waiting_for("the reward to be loaded"):
            for process in processes:
                process.wait_ready()
        started = time.monotonic()
        judged = waiting_for(lambda: f"responses to be judged, {len(scored):,} of {len(cases):,} are")
        with ThreadPoolExecutor(workers) as threads, judged:
            try:
                list(threads.map(work, processes))
            finally:
                stopped.set()  # an interrupt ends it after the responses in progress
        seconds = time.monotonic() - started
    return [scored[index] for index in range(len(cases))], seconds


def _print_summary(
    file: Path, cases: Sequence[Case], scored: Sequence[Scored], *, seconds: float, loading: float
) -> None:
    counts = _counts(scored)
    print(
        f"{file}: {len(cases)} responses: {counts['right']} right, {counts['wrong']} wrong, {counts['errors']} errors\n"
        f"{seconds:.2f} s, {len(cases) / max(seconds, 1e-9):,.0f} verifications per second; loading took {loading:.2f} s"
    )
    _print_agreement(cases, scored)
    errors = [(case.line, judged.error) for case, judged in zip(cases, scored, strict=True) if judged.error]
    for line, error in errors[:MOST_ERRORS_PRINTED]:
        print(f"  line {line}: {error}")
    if len(errors) > MOST_ERRORS_PRINTED:
        print(f"  and {len(errors) - MOST_ERRORS_PRINTED} more")


def _print_agreement(cases: Sequence[Case], scored: Sequence[Scored]) -> None:
    """Print how many verdicts agree with those in the file, and which lines do not."""
    expecting = [pair for pair in zip(cases, scored, strict=True) if pair[0].expected is not None]
    if not expecting:
        return
    other = [
        case.line for case, judged in expecting if judged.score is None or judged.score.correct is not case.expected
    ]
    lines = f"; not in lines {', '.join(map(str, other[:20]))}{', ...' if len(other) > 20 else ''}" if other else ""
    print(f"as judged there: {len(expecting) - len(other)} of {len(expecting)}{lines}")


def _counts(scored: Sequence[Scored]) -> dict[str, int]:
    scores = [scored.score for scored in scored if scored.score is not None]
    right = sum(score.correct for score in scores)
    return {"right": right, "wrong": len(scores) - right, "errors": len(scored) - len(scores)}


def _result(scored: Sequence[Scored], seconds: float) -> dict[str, object]:
    """The contents of ``--json``; ``correct`` is null exactly where ``error`` is not."""
    verdicts = [
        {
            "correct": scored.score.correct if scored.score else None,
            "reward": scored.score.reward if scored.score else None,
            "error": scored.error,
            "seconds": round(scored.seconds, 6),
        }
        for scored in scored
    ]
    return {**_counts(scored), "seconds": round(seconds, 3), "verdicts": verdicts}
