"""What a configuration or its data can be refused with (standard library)."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be run; the message names key, value and remedy."""


class SettingsUnreadable(ConfigError):
    """A file of settings is missing or broken as a file, whatever it was meant to say."""
