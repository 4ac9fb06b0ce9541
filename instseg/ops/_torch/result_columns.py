"""COCO result files straight into columns, with msgspec."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from instseg.structures.run_lengths import ResultColumns, RunLengths


class _Code(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str


class _Record(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: _Code | None = None


def result_columns(text: npt.NDArray[np.uint8]) -> ResultColumns | None:
    """See `instseg.ops.result_columns`."""
    try:
        records = msgspec.json.decode(text.data, type=list[_Record])
        boxes = [r.bbox for r in records if r.bbox is not None]
        codes = [r.segmentation for r in records if r.segmentation is not None]
        if not {len(boxes), len(codes)} <= {0, len(records)}:
            return None
        return ResultColumns(
            np.array([r.image_id for r in records], dtype=np.int64),
            np.array([r.category_id for r in records], dtype=np.int64),
            np.array([r.score for r in records], dtype=np.float64),
            np.array(boxes, dtype=np.float64) if boxes else None,
            RunLengths.of([{"size": c.size, "counts": c.counts.encode()} for c in codes])
            if codes
            else None,
        )
    # ValidationError is a DecodeError; integers beyond 64 bits overflow.
    except (msgspec.DecodeError, UnicodeError, OverflowError, RecursionError):
        return None
