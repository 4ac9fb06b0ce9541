"""Defects gathered while a data set is read, compressed: a large file can have millions."""

from __future__ import annotations

import json
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from instseg.data.columns import Array
from instseg.data.defects import Defect, Severity

_BLOCK = 4096  # defects compressed together
_SHOWN = 5  # ids listed before an ellipsis


@dataclass
class _Group:
    """The errors of one code: how many, and the first ids (one more than are shown)."""

    count: int = 0
    annotations: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)


class DefectLog:
    """Takes defects, and keeps them in the order they came."""

    def __init__(self) -> None:
        self._pending: list[list[object]] = []
        self._packed = bytearray()
        self._offsets = array("q", [0])
        self._groups: dict[str, _Group] = defaultdict(_Group)

    def extend(self, defects: Iterable[Defect]) -> None:
        """Add defects, all of one file."""
        for defect in defects:
            ids = defect.image_id, defect.annotation_id
            self._pending.append([defect.code, defect.severity.value, defect.message, *ids])
            if defect.severity is Severity.ERROR:
                self._count(defect)
            if len(self._pending) == _BLOCK:
                self._pack()

    def reasons(self) -> str:
        """The errors counted by code, each with a few ids."""
        parts = []
        for code, group in self._groups.items():
            named = [
                f"{noun} {', '.join(map(str, ids[:_SHOWN]))}{', ...' if len(ids) > _SHOWN else ''}"
                for noun, ids in (("annotation", group.annotations), ("image", group.images))
                if ids
            ]
            parts.append(f"{group.count} {code}" + (f" ({'; '.join(named)})" if named else ""))
        return ", ".join(parts)

    def arrays(self) -> dict[str, Array]:
        """Columns for `read_defects`."""
        if self._pending:
            self._pack()
        return {
            "defects": np.frombuffer(self._packed, np.uint8),
            "defects_offset": np.frombuffer(self._offsets, np.int64),
        }

    def _count(self, defect: Defect) -> None:
        group = self._groups[defect.code]
        group.count += 1
        if defect.annotation_id is not None:
            ids, identity = group.annotations, defect.annotation_id
        elif defect.image_id is not None:
            ids, identity = group.images, defect.image_id
        else:
            return
        if len(ids) <= _SHOWN:
            ids.append(identity)

    def _pack(self) -> None:
        self._packed += zlib.compress(json.dumps(self._pending).encode(), level=1)
        self._offsets.append(len(self._packed))
        self._pending.clear()


def read_defects(columns: Mapping[str, Array], file: str) -> Iterator[Defect]:
    """The defects of a `DefectLog`, in their order.

    Args:
        columns: its arrays.
        file: the annotation file's name.
    """
    edges = columns["defects_offset"].tolist()
    for start, stop in pairwise(edges):
        block = json.loads(zlib.decompress(columns["defects"][start:stop].tobytes()))
        for code, severity, message, image_id, annotation_id in block:
            yield Defect(code, Severity(severity), message, file, image_id, annotation_id)
