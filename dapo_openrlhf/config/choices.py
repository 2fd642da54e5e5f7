"""What a run around the algorithm may be made of (standard library).

Those of the algorithm are in :mod:`dapo_openrlhf.algorithm.choices`. Whoever acts on a choice has a case for each of its
values, or a mapping with all of them; ``tests/backend/test_choices.py`` tries every one.
"""

from __future__ import annotations

from typing import Literal

DeviceKind = Literal["cpu", "cuda"]
"""``device``"""

LrScheduler = Literal["constant_with_warmup", "linear", "cosine"]
"""``actor.lr_scheduler``, by transformers' names."""

ZeroStage = Literal[1, 2, 3]
"""``ds.zero_stage``"""

AtDeadline = Literal["wait", "cut"]
"""``async.at_deadline``"""

KvCache = Literal["keep", "recompute"]
"""``async.kv_cache``"""

AnswerForm = Literal["any", "number"]
"""``reward.answer_form``"""

OnBadRow = Literal["refuse", "skip"]
"""``data.on_bad_row``"""
