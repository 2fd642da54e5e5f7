"""The command ``dapo-openrlhf eval``: measures held-out accuracy with the engines and the reward of training."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.outputs import check_output, write_json
from dapo_openrlhf.cli.train import Say, first_words
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.evaluation import EvalSet
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.heartbeat import Heartbeat, silence_of, waiting_for
from dapo_openrlhf.pipeline.evaluation import Evaluation, Evaluations
from dapo_openrlhf.report.progress import EvaluationProgress
from dapo_openrlhf.report.responses import write_responses


def evaluate(config: Config, *, json_file: Path | None, responses_file: Path | None) -> int:
    """Measure ``actor.model_name_or_path`` on ``eval.dataset``; returns the exit status."""
    voice = Voice(sys.stdout)
    heart = Heartbeat(voice, seconds=silence_of(sys.stdout))
    with heart.beating():
        status = _evaluate(config, heart.say, json_file=json_file, responses_file=responses_file)
    return status or (1 if voice.lost else 0)


def _evaluate(config: Config, say: Say, *, json_file: Path | None, responses_file: Path | None) -> int:
    """Measure ``actor.model_name_or_path`` on ``eval.dataset``; returns the exit status."""
    if config.eval.dataset is None:
        raise ConfigError("eval.dataset: must be set to measure anything")
    check_output("--json", json_file)
    responses = response_files(config, responses_file)
    for file in responses.values():
        check_output("--responses", file)
    with stopping.nothing_to_lose(), waiting_for("Ray to be imported"):
        from dapo_openrlhf.backend.run import launch
        from dapo_openrlhf.backend.run.evaluators import problems_at_once
        from dapo_openrlhf.backend.run.inputs import check_inputs

    started = time.monotonic()
    with waiting_for("the model's files, the problems and the reward to be read"):
        inputs = check_inputs(config, training=False, say=say)
    count = sum(map(len, inputs.problems))
    progress = EvaluationProgress(count, at_once=problems_at_once(config, inputs))
    say(
        f"{count:,} problems, {_each(config)} responses each; starting Ray and {config.vllm.num_engines} engine(s) on "
        f"{config.device}"
    )
    for note in inputs.stop.notes:
        say(note)
    try:
        with stopping.telling(progress.when_stopped), waiting_for("the start of Ray and the engines, or answers"):
            measured = launch.evaluate(
                config,
                inputs,
                say=say,
                on_answered=progress.answered,
                progress=progress.words,
            )
    except (ExceptionGroup, RuntimeError) as error:  # nothing could be judged, engines did not start, a server is gone
        print(first_words(error), file=sys.stderr)
        return 1
    seconds = round(time.monotonic() - started, 1)
    say("\n".join(words(config, one, measured.sets[one.key]) for one in config.eval_sets))
    for key, file in responses.items():
        write_responses(file, measured.sets[key])
    if json_file is not None:
        write_json(json_file, summary_of_all(config, measured) | {"total_seconds": seconds})
    return 0


def response_files(config: Config, file: Path | None) -> dict[str, Path]:
    """The files of the responses, by the sets' keys: of several sets each has its name before the file's suffix."""
    if file is None:
        return {}
    keys = config.eval.keys
    return {key: file if len(keys) == 1 else file.with_name(f"{file.stem}.{key}{file.suffix}") for key in keys}


def _each(config: Config) -> str:
    """The numbers of responses to each problem, of all sets."""
    return " or ".join(dict.fromkeys(str(one.n_samples_per_prompt) for one in config.eval_sets))


def summary_of_all(config: Config, measured: Evaluations) -> dict[str, object]:
    """The contents of ``--json``: the summary of a single set, or each one's by its name with the first one's accuracy."""
    summaries = {one.name: summary_of(config, one, measured.sets[one.key]) for one in config.eval_sets}
    first = next(iter(summaries.values()))
    if len(summaries) == 1:
        return first
    return {"model": first["model"], "accuracy": first["accuracy"], "sets": summaries}


def summary_of(config: Config, one: EvalSet, measured: Evaluation) -> dict[str, object]:
    """What ``--json`` holds of a set: settings, every estimate with its 95 % interval, errors, lengths, speed."""
    responses = measured.responses
    tokens = sum(response.length for response in responses)
    return {
        "model": config.actor.model_name_or_path,
        "dataset": one.path,
        "accuracy": measured.accuracy.value,
        "estimates": {name: asdict(estimate) for name, estimate in measured.estimates().items()},
        "max_samples": one.max_samples,
        "problems": len(measured.results),
        "responses": len(responses),
        "errors": measured.errors,
        "n_samples_per_prompt": one.n_samples_per_prompt,
        "temperature": one.temperature,
        "top_p": one.top_p,
        "max_new_tokens": one.max_new_tokens,
        "truncated": sum(response.truncated for response in responses),
        "no_answer": sum(response.correct is False and response.answer is None for response in responses),
        "tokens": tokens,
        "seconds": round(measured.seconds, 3),
        "tokens_per_second": round(tokens / max(measured.seconds, 1e-9), 1),
    }


def words(config: Config, one: EvalSet, measured: Evaluation) -> str:
    """The same as text for the terminal."""
    responses = measured.responses
    sampling = f"T {one.temperature:g}, top-p {one.top_p:g}"
    first = "the first " if len(measured.results) == one.max_samples else ""
    lines = [
        f"{config.actor.model_name_or_path} on {first}{len(measured.results)} problems of {one.path} ({sampling}), "
        "95 % intervals over problems"
    ]
    lines += [
        f"  {name:<8} {estimate} on {_covered(estimate.problems, len(measured.results))}"
        for name, estimate in measured.estimates().items()
    ]
    tokens = sum(response.length for response in responses)
    truncated = sum(response.truncated for response in responses)
    lines.append(
        f"  {len(responses)} responses: {truncated} truncated, {measured.errors} errors, {tokens / len(responses):.0f} tokens "
        f"each on average; {measured.seconds:.1f} s, {tokens / max(measured.seconds, 1e-9):,.0f} tokens/s"
    )
    return "\n".join(lines)


def _covered(problems: int, of: int) -> str:
    """The number of problems that a row covers, those with enough judged responses, in words."""
    return f"{problems} problems" if problems == of else f"the {problems} of {of} problems with enough judged responses"
