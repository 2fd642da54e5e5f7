"""The errors with which a configuration or its data is refused (standard library)."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be run; the message names key, value and remedy."""


class SettingsUnreadable(ConfigError):
    """A file of settings is missing, or cannot be read as a file of its format."""
