"""Numbers that JSON lacks."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PlainSerializer


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


Figure = Annotated[float, PlainSerializer(_json_number, when_used="json"), Field(strict=False)]
"""A float of a pydantic model; NaN and infinities are the strings "nan", "inf", "-inf" in JSON."""
