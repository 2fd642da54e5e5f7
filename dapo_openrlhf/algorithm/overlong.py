"""The punishment of responses that are too long (DAPO section 3.4; pure Python)."""

from __future__ import annotations


def soft_overlong_punishment(length: int, *, max_length: int, buffer_length: int, factor: float) -> float:
    """Length penalty added to the rule reward, DAPO eq. 13; in ``[-factor, 0]``.

    ``length`` in tokens; ``max_length`` is L_max, ``buffer_length`` is L_cache in ``[0, L_max]`` (0: no punishment).
    Zero up to ``L_max - L_cache``, then falling linearly to ``-factor`` at ``L_max`` and beyond.
    """
    if not 0 <= buffer_length <= max_length:
        raise ValueError(f"need 0 <= buffer_length <= max_length, got {buffer_length} and {max_length}")
    if buffer_length == 0:
        return 0.0
    excess = length - (max_length - buffer_length)
    return -factor * min(max(excess / buffer_length, 0.0), 1.0)
