"""What a configuration or its data can be refused with (standard library)."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be run; the message names key, value and remedy."""
