"""What sections of settings are made of (pydantic)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]

COLDEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM samples at (its ``sampling_params.py``): it takes colder ones for 0.01, and refuses hotter ones."""


class Section(BaseModel):
    """A frozen group of settings; the docstring below a field becomes its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def listed(value: object) -> object:
    """One value where a list may stand; null stays null."""
    return (value,) if isinstance(value, str | int | float) else value
