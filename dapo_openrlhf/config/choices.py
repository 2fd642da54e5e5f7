"""The closed choices among the settings outside the algorithm (standard library).

Those of the algorithm are in :mod:`dapo_openrlhf.algorithm.choices`. Code that depends on a choice has a case for each
of its values, or a mapping with all of them; ``tests/backend/test_choices.py`` tries every one.
"""

from __future__ import annotations

from typing import Literal

DeviceKind = Literal["cpu", "cuda"]
"""Values of ``device``."""

LrScheduler = Literal["constant_with_warmup", "linear", "cosine"]
"""Values of ``actor.lr_scheduler``, by transformers' names."""

ZeroStage = Literal[1, 2, 3]
"""Values of ``ds.zero_stage``."""

AtDeadline = Literal["wait", "cut"]
"""Values of ``async.at_deadline``."""

KvCache = Literal["keep", "recompute"]
"""Values of ``async.kv_cache``."""

AnswerForm = Literal["any", "number"]
"""Values of ``reward.answer_form``."""

OnBadRow = Literal["refuse", "skip"]
"""Values of ``data.on_bad_row``."""

WandbMode = Literal["offline", "online"]
"""Values of ``report.wandb``."""
