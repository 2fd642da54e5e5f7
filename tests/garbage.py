"""Imported modules are millions of objects, and vLLM collects garbage seven times for each engine that comes and goes.

They are exempt from collection within :func:`imports_exempt`, where vLLM's own freezing and unfreezing do nothing, so that
what engines leave is still collected.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

_freeze, _unfreeze = gc.freeze, gc.unfreeze


@contextmanager
def imports_exempt() -> Iterator[None]:
    """Exempt what is there, now and with every :func:`exempt_what_is_left`."""
    with patch.object(gc, "freeze"), patch.object(gc, "unfreeze"):
        exempt_what_is_left()
        try:
            yield
        finally:
            _unfreeze()


def exempt_what_is_left() -> None:
    """Collect garbage, and exempt from later collections what is none: by then mostly modules."""
    gc.collect()
    _freeze()
