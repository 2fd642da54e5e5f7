"""The base class and the field types of sections of settings (pydantic)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]

COLDEST, HOTTEST = 0.01, 2.0
"""Range of the temperatures that vLLM samples at (its ``sampling_params.py``): it raises lower ones to 0.01, and
refuses higher ones."""


class Section(BaseModel):
    """A frozen group of settings; the docstring below a field becomes its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def listed(value: object) -> object:
    """A single value as a list of one, where a list may be given; null stays null."""
    return (value,) if isinstance(value, str | int | float) else value
