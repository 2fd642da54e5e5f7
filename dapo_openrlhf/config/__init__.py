"""Every setting of a run: defaults, presets, what must agree, reading files and command lines."""
