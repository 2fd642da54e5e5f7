"""The command ``dapo-openrlhf rollout``: prints a few rollouts with segments, versions, rewards and log-probs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from textwrap import indent
from typing import TYPE_CHECKING

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.outputs import check_output, write_json
from dapo_openrlhf.cli.train import first_words
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.heartbeat import Heartbeat, silence_of, waiting_for

if TYPE_CHECKING:
    from dapo_openrlhf.backend.run.rollouts import LookedAt, LookedAtSegment


def rollout(config: Config, *, n: int, json_file: Path | None) -> int:
    """Print a rollout of each of the first ``n`` prompts; returns the exit status, 1 if any could not be scored."""
    if n < 1:
        raise ConfigError(f"--n: {n} is no number of rollouts; use at least 1")
    check_output("--json", json_file)
    voice = Voice(sys.stdout)
    heart = Heartbeat(voice, seconds=silence_of(sys.stdout))
    with heart.beating():
        with stopping.nothing_to_lose(), waiting_for("Ray to be imported"):
            from dapo_openrlhf.backend.run.inputs import check_inputs, read_prompts
            from dapo_openrlhf.backend.run.rollouts import look_at
        with waiting_for("the model's files, the prompts and the environment to be read"):
            inputs = check_inputs(config, training=False)
            prompts = read_prompts(config)
        try:
            with waiting_for("the start of Ray and the engines, or rollouts"):
                looked_at = look_at(config, inputs, [*prompts[:n]], say=heart.say)
        except (ExceptionGroup, RuntimeError) as error:  # engines did not start, a server is gone
            print(first_words(error), file=sys.stderr)
            return 1
        for number, one in enumerate(looked_at, start=1):
            heart.say("\n".join(words(one, f"rollout {number} of {len(looked_at)}")))
    if json_file is not None:
        write_json(json_file, {"rollouts": [asdict(one) for one in looked_at]})
    return 1 if voice.lost or any(one.score is None for one in looked_at) else 0


def words(one: LookedAt, title: str) -> Iterator[str]:
    """A rollout for the terminal, line by line."""
    yield f"{title}: {one.prompt.name}, label {one.prompt.label!r}"
    yield f"  prompt, {len(one.prompt.token_ids)} tokens"
    yield indent(one.prompt.text, "    | ", lambda line: True)
    for part in one.segments:
        yield f"  {_title(part)}"
        yield indent(part.segment.text, "    | ", lambda line: True)
    if one.score is None:
        yield f"  not scored: {one.error}"
        return
    score = "" if one.score.score is None else f", score {one.score.score:g}"
    end = "ended by a limit" if one.truncated else "ended by itself"
    yield f"  reward {one.score.reward:g}{score}, {'right' if one.score.correct else 'wrong'}; {end}"
    for name, value in one.score.logs.items():
        yield f"    {name} {value:g}"


def _title(part: LookedAtSegment) -> str:
    segment = part.segment
    title = f"{segment.kind}, {segment.tokens} tokens"
    if part.ids:
        first, last = min(part.versions), max(part.versions)
        versions = f"version {first}" if first == last else f"versions {first} to {last}"
        title += f", {versions}, log-probs {fmean(part.logprobs):.3f} on average, lowest {min(part.logprobs):.3f}"
    return title if segment.reward is None else f"{title}, reward {segment.reward:g}"
