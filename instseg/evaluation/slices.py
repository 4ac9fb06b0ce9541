"""Named sets of images to score on their own, such as those taken at night."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as short

from instseg.evaluation.checks import is_int
from instseg.evaluation.json_file import read_json


class SliceError(ValueError):
    """Slices that cannot be used; the message names the slice, or the file if it is at fault."""


def read_slices(path: Path) -> dict[str, list[int]]:
    """Read ``{"name": [image ids]}``.

    Raises:
        SliceError: the file is not JSON or holds something else.
        OSError: it cannot be read.
    """
    slices = read_json(path, SliceError)
    if not isinstance(slices, dict) or not slices:
        raise SliceError(f'{path}: expected {{"name": [image ids], ...}}, got {short(slices)}')
    for name, ids in slices.items():
        if not isinstance(ids, list) or not ids or not all(map(is_int, ids)):
            raise SliceError(
                f"{path}: slice {name!r} must be a list of image ids, got {short(ids)}"
            )
    return slices
