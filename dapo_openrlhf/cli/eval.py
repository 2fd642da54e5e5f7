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
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.heartbeat import Heartbeat, silence_of, waiting_for
from dapo_openrlhf.pipeline.evaluation import Evaluation
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
    check_output("--responses", responses_file)
    with stopping.nothing_to_lose(), waiting_for("Ray to be imported"):
        from dapo_openrlhf.backend.run import launch
        from dapo_openrlhf.backend.run.inputs import check_inputs

    started = time.monotonic()
    with waiting_for("the model's files, the problems and the reward to be read"):
        inputs = check_inputs(config, training=False, say=say)
    progress = EvaluationProgress(len(inputs.problems), at_once=launch.problems_at_once(config))
    say(
        f"{len(inputs.problems):,} problems, {config.eval.n_samples_per_prompt} responses each; starting Ray and "
        f"{config.vllm.num_engines} engine(s) on {config.device}"
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
    summary = summary_of(config, measured) | {"total_seconds": round(time.monotonic() - started, 1)}
    say(words(config, measured))
    if responses_file is not None:
        write_responses(responses_file, measured)
    if json_file is not None:
        write_json(json_file, summary)
    return 0


def summary_of(config: Config, measured: Evaluation) -> dict[str, object]:
    """The contents of ``--json``: settings, every estimate with its 95 % interval, errors, lengths, speed."""
    settings, responses = config.eval, measured.responses
    tokens = sum(response.length for response in responses)
    return {
        "model": config.actor.model_name_or_path,
        "dataset": settings.dataset,
        "accuracy": measured.accuracy.value,
        "estimates": {name: asdict(estimate) for name, estimate in measured.estimates().items()},
        "max_samples": settings.max_samples,
        "problems": len(measured.results),
        "responses": len(responses),
        "errors": measured.errors,
        "n_samples_per_prompt": settings.n_samples_per_prompt,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens or config.rollout.max_new_tokens,
        "truncated": sum(response.truncated for response in responses),
        "no_answer": sum(response.correct is False and response.answer is None for response in responses),
        "tokens": tokens,
        "seconds": round(measured.seconds, 3),
        "tokens_per_second": round(tokens / max(measured.seconds, 1e-9), 1),
    }


def words(config: Config, measured: Evaluation) -> str:
    """The same as text for the terminal."""
    settings, responses = config.eval, measured.responses
    sampling = f"T {settings.temperature:g}, top-p {settings.top_p:g}"
    first = "the first " if len(measured.results) == settings.max_samples else ""
    lines = [
        f"{config.actor.model_name_or_path} on {first}{len(measured.results)} problems of {settings.dataset} ({sampling}), "
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
