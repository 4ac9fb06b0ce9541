"""The records of a data set, made from columns when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from instseg.data.columns import Columns
from instseg.data.mask_codes import Part, PartKind, decode_mask, original_mask
from instseg.structures.geometry import Size
from instseg.structures.masks import Segmentation


@dataclass
class Record:
    """One image and its N objects, before a pixel is read.

    Args:
        image_id: the id in the annotation file.
        path: the image file, absolute; its end may name a page (``stack.tif#page=0``).
        size: (height, width) as the annotation file says.
        boxes: ``float32 [N, 4]``, absolute x1 y1 x2 y2 within the image.
        labels: ``int64 [N]``, contiguous from 0 in the order of sorted category ids.
        is_crowd: ``bool [N]``.
        annotation_ids: ``int64 [N]``, the ids in the annotation file.
        segmentations: N masks in coordinates of the image; None where masks are not needed.
    """

    image_id: int
    path: Path
    size: Size
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    annotation_ids: npt.NDArray[np.int64]
    segmentations: list[Segmentation] | None


class Records(Sequence[Record]):
    """The records of an index; each access makes one anew, in memory of its own.

    Pickling one of a file takes the file's name alone (see `Columns`), so that worker processes
    share the file's memory however they are started.

    Args:
        columns: from `index_builder.IndexBuilder`.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["image_id"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.columns,)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} records, got index {index}")
        return self._record(index % len(self))

    @property
    def image_ids(self) -> npt.NDArray[np.int64]:
        """``int64 [len(self)]``."""
        return self.columns["image_id"]

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """``int32 [len(self), 2]``: (height, width) of each image as the annotation file says."""
        return self.columns["size"]

    @property
    def object_counts(self) -> npt.NDArray[np.int64]:
        """``int64 [len(self)]``: objects of each image, crowds among them."""
        return np.diff(self.columns["object_offset"])

    @property
    def has_object(self) -> bool:
        """Whether there is an object that is no crowd."""
        return not bool(self.columns["is_crowd"].all())

    @property
    def has_masks(self) -> bool:
        """Whether the records have segmentations."""
        return "part_kind" in self.columns.arrays

    def labels_of(self, index: int) -> npt.NDArray[np.int64]:
        """``int64 [N]``: the labels of a record that is not made for them."""
        return self.columns["label"][self._rows(index)].astype(np.int64)

    def path(self, index: int) -> Path:
        """The image file of a record."""
        return self._root / self._text("path", index)

    def position(self, image_id: int) -> int:
        """The index of the record of an image.

        Raises:
            KeyError: there is none.
        """
        order, ids = self._by_id
        place = int(np.searchsorted(ids, image_id))
        if place == len(ids) or ids[place] != image_id:
            raise KeyError(image_id)
        return int(order[place])

    def coco_images(self) -> Iterator[dict[str, Any]]:
        """The ``images`` of a COCO dictionary."""
        for i, (image_id, (height, width)) in enumerate(
            zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
        ):
            name = self._text("file_name", i)
            yield {"id": image_id, "width": width, "height": height, "file_name": name}

    def coco_annotations(self, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The ``annotations`` of a COCO dictionary, in the order of the file.

        Args:
            category_ids: the category id of each label.
        """
        columns, image_ids = self.columns, self.image_ids
        for row, image in enumerate(columns["image"]):
            annotation = {
                "id": int(columns["annotation_id"][row]),
                "image_id": int(image_ids[image]),
                "category_id": category_ids[columns["label"][row]],
                "bbox": columns["bbox"][row].tolist(),
                "iscrowd": int(columns["is_crowd"][row]),
                "area": float(columns["area"][row]),
            }
            if self.has_masks:
                annotation["segmentation"] = original_mask(self._parts(row), self._size(image))
            yield annotation

    @cached_property
    def _root(self) -> Path:
        return Path(self.columns.meta["root"])

    @cached_property
    def _by_id(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        order = np.argsort(self.image_ids, kind="stable")
        return order, self.image_ids[order]

    def _record(self, index: int) -> Record:
        columns, size, rows = self.columns, self._size(index), self._rows(index)
        return Record(
            image_id=int(columns["image_id"][index]),
            path=self.path(index),
            size=size,
            boxes=_clipped(columns["bbox"][rows], size),
            labels=self.labels_of(index),
            is_crowd=columns["is_crowd"][rows].astype(np.bool_),
            annotation_ids=columns["annotation_id"][rows],
            segmentations=[decode_mask(self._parts(row), size) for row in rows]
            if self.has_masks
            else None,
        )

    def _rows(self, index: int) -> npt.NDArray[np.int64]:
        """The rows of an image's objects, in the order of the file."""
        start, stop = self.columns["object_offset"][index : index + 2]
        return self.columns["object_row"][start:stop]

    def _size(self, index: int) -> Size:
        height, width = self.columns["size"][index].tolist()
        return height, width

    def _text(self, name: str, index: int) -> str:
        start, stop = self.columns[f"{name}_offset"][index : index + 2]
        return self.columns[name][start:stop].tobytes().decode("utf-8", "surrogateescape")

    def _parts(self, row: int) -> list[Part]:
        first, last = self.columns["mask_offset"][row : row + 2]
        edges = self.columns["part_offset"][first : last + 1].tolist()
        kinds = self.columns["part_kind"][first:last].tolist()
        return [
            (PartKind(kind), self.columns["part"][start:stop].tobytes())
            for kind, (start, stop) in zip(kinds, pairwise(edges), strict=True)
        ]


def _clipped(bbox: npt.NDArray[np.float64], size: Size) -> npt.NDArray[np.float32]:
    """`defects.clipped_box` of many ``[x, y, width, height]``, to the same bits."""
    x, y, w, h = bbox.T
    right, bottom = x + w, y + h
    height, width = size
    corners = (
        np.where(x < 0, 0, x),
        np.where(y < 0, 0, y),
        np.where(right > width, width, right),
        np.where(bottom > height, height, bottom),
    )
    return np.stack(corners, axis=1).astype(np.float32)
