"""Values that compare bit for bit."""

from typing import Any

import numpy as np

from instseg.data.records import Record


def plain(value: Any) -> Any:
    """A value that compares bit for bit: arrays as type, shape and bytes."""
    if isinstance(value, Record):
        return {name: plain(entry) for name, entry in vars(value).items()}
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return type(value).__name__, [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return type(value).__name__, value
