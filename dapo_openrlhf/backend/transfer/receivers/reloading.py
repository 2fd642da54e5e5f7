"""What versions of vLLM call differently in their layerwise reload (imported in vLLM's workers only).

Everything else that this package uses of vLLM has one form in all versions that ``config/vllm_versions.py`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext

from vllm.model_executor.model_loader.reload import meta

UNCOUNTED: Set[str]
"""Names of tensors whose loads vLLM does not count."""

accepting_parts: Callable[[], AbstractContextManager[None]]
"""Within it a model with layers for speculation may be given its weights in several pieces."""

try:
    from vllm.model_executor.model_loader import mtp_validation
except ImportError:  # 0.26, whose models do not check it
    UNCOUNTED, accepting_parts = meta.SKIP_TENSORS, nullcontext
else:
    UNCOUNTED, accepting_parts = meta.SKIP_LOAD_TENSORS, mtp_validation.disable_mtp_completeness_check
