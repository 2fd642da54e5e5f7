"""The rollouts of one group with their environments, and the group as it leaves the engine (asyncio)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate, takewhile

import numpy as np

from dapo_openrlhf.backend.engine.episode import Episode, Means
from dapo_openrlhf.backend.engine.rollout_worker import EpisodeRules
from dapo_openrlhf.backend.kept_tokens import joined_sets
from dapo_openrlhf.backend.messages import GenerationReport, GroupTexts, GroupTokens, Observations, joined
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.types import Prompt


class EpisodeGroup:
    """G rollouts of one prompt, each at its own pace."""

    def __init__(self, name: str, prompt: Prompt, responses: int, *, means: Means, rules: EpisodeRules) -> None:
        self._episodes = [Episode(f"{name}/{index}", prompt, means, rules) for index in range(responses)]

    def cut(self) -> None:
        """End every rollout after what is being written now; see :meth:`Episode.cut`."""
        for episode in self._episodes:
            episode.cut()

    async def play(self, sampling: Sampling) -> tuple[GenerationReport, GroupTokens, GroupTexts] | None:
        """Play all rollouts to their ends; None if one was cut before it had a token.

        The first rollout that fails ends the others. Raises what :meth:`Episode.play` raises.
        """
        playing = [
            asyncio.ensure_future(episode.play(sampling.of_response(index)))
            for index, episode in enumerate(self._episodes)
        ]
        try:
            await asyncio.wait(playing, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            if not all(rollout.done() for rollout in playing):
                self.cut()
        ended = await asyncio.gather(*playing, return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error
        return None if any(episode.length == 0 for episode in self._episodes) else _made(self._episodes)


def _made(episodes: Sequence[Episode]) -> tuple[GenerationReport, GroupTokens, GroupTexts]:
    tokens = _tokens(episodes)
    report = GenerationReport(
        prompt_length=len(tokens.prompt_ids),
        lengths=tuple(episode.length for episode in episodes),
        truncated=tuple(episode.truncated for episode in episodes),
        cut=tuple(episode.cut_off for episode in episodes),
        oldest_version=int(tokens.versions.versions.min()),
        newest_version=int(tokens.versions.versions.max()),
        version_tokens=tokens.versions.tokens_of_versions(),
        observed=tuple(len(observed.ids) for observed in tokens.observations),
        scores=tuple(episode.score() for episode in episodes),
    )
    segments = tuple(tuple(episode.segments) for episode in episodes)
    responses = tuple("".join(segment.text for segment in of_one) for of_one in segments)
    return report, tokens, GroupTexts(responses=responses, segments=segments)


def _tokens(episodes: Sequence[Episode]) -> GroupTokens:
    actions = [action for episode in episodes for action in episode.actions]
    # Environments may begin a group's rollouts in different ways. What these have in common counts as the prompt.
    starts = zip(*(episode.start for episode in episodes), strict=False)
    common = [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, starts)]
    return GroupTokens(
        prompt_ids=np.asarray(common, np.int32),
        response_ids=np.concatenate([action.response_ids for action in actions]),
        rollout_logprobs=np.concatenate([action.rollout_logprobs for action in actions]),
        offsets=np.asarray([0, *accumulate(episode.length for episode in episodes)]),
        versions=joined([action.versions for action in actions]),
        kept=joined_sets(kept) if (kept := [a.kept for a in actions if a.kept is not None]) else None,
        observations=tuple(_observations(episode, len(common)) for episode in episodes),
    )


def _observations(episode: Episode, common: int) -> Observations:
    """What stands before an action; what comes after the last one was never read."""
    runs = [(0, episode.start[common:]), *episode.observations]
    read = [(after, ids) for after, ids in runs if ids and after < episode.length]
    return Observations(
        ids=np.asarray([token for _, ids in read for token in ids], np.int32),
        ends=np.cumsum([len(ids) for _, ids in read], dtype=np.int64),
        after=np.asarray([after for after, _ in read], np.int64),
    )
