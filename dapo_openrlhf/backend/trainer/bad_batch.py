"""Writes one rank's arrays of an update that was stopped, for inspection (numpy; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.backend.trainer.per_sample import Known, PerSample, key_of
from dapo_openrlhf.pipeline.batch import Sample, Update


def write_rank(folder: Path, rank: int, update: Update, tokens: Mapping[int, GroupTokens], known: Known) -> None:
    """Write ``rank-N.npz``: the rank's samples of the update, readable by ``numpy.load`` without pickle.

    Arrays with one entry per sample (S of them): ``group`` (index in the batch, as in ``batch.json``), ``response``
    (index in the group), ``trained``, ``advantage``, ``weight``. Flat arrays over all samples: ``prompt_ids``, divided
    by ``prompt_offsets`` [S + 1]; ``response_ids``, ``rollout_logprobs`` and ``versions`` (of the weights that sampled
    each token), divided by ``response_offsets`` [S + 1].
    Arrays of the same length as ``response_ids``, as far as they were known, with NaN where they were not: ``logprobs``
    (of the weights, which the stopped update did not change), ``old_logprobs``, ``ref_logprobs``, ``values``,
    ``advantages``, ``returns``. With an environment also ``context_ids``, all that was read, divided by
    ``context_offsets``, and ``context_positions``: where among them each response token stands, from 0 in each context.
    With ``rollout.top_p``, ``top_k`` or ``min_p`` also ``kept_ids``, the tokens from which each response token was drawn,
    divided by ``kept_counts``, as many as ``response_ids``.
    """
    samples = [sample for micro_batch in update.micro_batches for sample in micro_batch]
    responses = [tokens[sample.group].response(sample.index) for sample in samples]
    prompts = [tokens[sample.group].prompt_ids for sample in samples]
    arrays: dict[str, Any] = {
        "group": np.asarray([sample.group for sample in samples]),
        "response": np.asarray([sample.index for sample in samples]),
        "trained": np.asarray([sample.trained for sample in samples]),
        "advantage": np.asarray([sample.advantage for sample in samples]),
        "weight": np.asarray([sample.weight for sample in samples]),
        "prompt_ids": np.concatenate(prompts),
        "prompt_offsets": _offsets(prompts, len),
        "response_ids": np.concatenate([ids for ids, _ in responses]),
        "rollout_logprobs": np.concatenate([logprobs for _, logprobs in responses]),
        "versions": np.concatenate([tokens[s.group].response_versions(s.index).per_token() for s in samples]),
        "response_offsets": _offsets(samples, lambda sample: sample.length),
    }
    for name, values in (
        ("logprobs", known.logprobs),
        ("old_logprobs", known.old_logprobs),
        ("ref_logprobs", known.ref_logprobs),
        ("values", known.values),
        ("advantages", known.advantages),
        ("returns", known.returns),
    ):
        if values:
            arrays[name] = np.concatenate([_row(values, sample) for sample in samples])
    kept = [sets for s in samples if (sets := tokens[s.group].response_kept(s.index)) is not None]
    if kept:
        arrays["kept_counts"] = np.concatenate([sets.counts for sets in kept])
        arrays["kept_ids"] = np.concatenate([sets.ids() for sets in kept])
    if any(tokens[sample.group].observations for sample in samples):
        contexts = [tokens[sample.group].context(sample.index) for sample in samples]
        arrays["context_ids"] = np.concatenate([ids for ids, _ in contexts])
        arrays["context_positions"] = np.concatenate([positions for _, positions in contexts])
        arrays["context_offsets"] = _offsets(samples, lambda sample: sample.tokens)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"rank-{rank}.npz", **arrays)


def _offsets(parts: Sequence[Any], length: Callable[[Any], int]) -> NDArray[np.int64]:
    return np.asarray([0, *accumulate(map(length, parts))], np.int64)


def _row(values: PerSample, sample: Sample) -> NDArray[np.float32]:
    row = values.get(key_of(sample))
    return np.full(sample.length, np.nan, np.float32) if row is None else row.float().cpu().numpy()
