"""From usable COCO records, one by one, to the columns of an index.

Columns, for I images, N objects in the order of the file and P parts of their masks:

- of images: ``image_id int64 [I]``, ``size int32 [I, 2]``, and the texts ``file_name`` and ``path``
  (from the image root, links followed) as UTF-8 in one ``uint8`` array each, text i between
  ``NAME_offset[i]`` and ``NAME_offset[i + 1]``;
- of objects: ``annotation_id int64 [N]``, ``image int32 [N]`` and ``label int32 [N]`` (positions of
  image and category), ``bbox float64 [N, 4]`` as annotated, ``area float64 [N]``,
  ``is_crowd uint8 [N]``;
- from images to objects: the rows ``object_row[object_offset[i] : object_offset[i + 1]]``;
- of masks, where they are kept: object n has the parts ``mask_offset[n]`` up to
  ``mask_offset[n + 1]``, part p is ``part[part_offset[p] : part_offset[p + 1]]``, and its kind is
  ``part_kind[p]`` (`mask_codes.PartKind`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instseg.data.columns import Array
from instseg.data.mask_codes import encode_mask
from instseg.structures.geometry import Size


class IndexBuilder:
    """Collects the columns of the images and objects that can be used.

    Args:
        images: the usable image records.
        paths: the file of each of them, under ``root``.
        root: the image folder, resolved.
        labels: the label of each category id.
        with_masks: keep the masks.
    """

    def __init__(
        self,
        images: Iterable[Mapping[str, Any]],
        paths: Mapping[int, Path],
        root: Path,
        labels: Mapping[int, int],
        *,
        with_masks: bool,
    ) -> None:
        self._labels = labels
        self._with_masks = with_masks
        self._positions: dict[int, int] = {}
        self._sizes: list[Size] = []
        self._names, self._paths = _Texts(), _Texts()
        for image in images:
            self._positions[image["id"]] = len(self._sizes)
            self._sizes.append((image["height"], image["width"]))
            self._names.append(image["file_name"])
            self._paths.append(paths[image["id"]].relative_to(root).as_posix())
        self._ids, self._images, self._object_labels = array("q"), array("i"), array("i")
        self._boxes, self._areas, self._crowds = array("d"), array("d"), array("B")
        self._mask_offsets, self._part_offsets = array("q", [0]), array("q", [0])
        self._part_kinds, self._parts = array("B"), bytearray()

    def add(self, annotation: Mapping[str, Any]) -> None:
        """Add a usable annotation, its area and crowd flag filled in; others' images are passed."""
        position = self._positions.get(annotation["image_id"])
        if position is None:
            return
        self._ids.append(annotation["id"])
        self._images.append(position)
        self._object_labels.append(self._labels[annotation["category_id"]])
        self._boxes.extend(annotation["bbox"])
        self._areas.append(annotation["area"])
        self._crowds.append(annotation["iscrowd"])
        if not self._with_masks:
            return
        for kind, content in encode_mask(annotation["segmentation"], self._sizes[position]):
            self._part_kinds.append(kind)
            self._parts += content
            self._part_offsets.append(len(self._parts))
        self._mask_offsets.append(len(self._part_kinds))

    def arrays(self) -> dict[str, Array]:
        """The columns."""
        images = np.frombuffer(self._images, np.int32)
        counts = np.bincount(images, minlength=len(self._sizes))
        columns: dict[str, Array] = {
            "image_id": np.fromiter(self._positions, np.int64, len(self._positions)),
            "size": np.array(self._sizes, np.int32).reshape(-1, 2),
            **self._names.arrays("file_name"),
            **self._paths.arrays("path"),
            "annotation_id": np.frombuffer(self._ids, np.int64),
            "image": images,
            "label": np.frombuffer(self._object_labels, np.int32),
            "bbox": np.frombuffer(self._boxes, np.float64).reshape(-1, 4),
            "area": np.frombuffer(self._areas, np.float64),
            "is_crowd": np.frombuffer(self._crowds, np.uint8),
            "object_row": np.argsort(images, kind="stable").astype(np.int32),
            "object_offset": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        }
        if self._with_masks:
            columns |= {
                "mask_offset": np.frombuffer(self._mask_offsets, np.int64),
                "part_offset": np.frombuffer(self._part_offsets, np.int64),
                "part_kind": np.frombuffer(self._part_kinds, np.uint8),
                "part": np.frombuffer(self._parts, np.uint8),
            }
        return columns


class _Texts:
    """Texts end to end as UTF-8; half characters of file names that are none stay as they are."""

    def __init__(self) -> None:
        self._content, self._offsets = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._content += text.encode("utf-8", "surrogateescape")
        self._offsets.append(len(self._content))

    def arrays(self, name: str) -> dict[str, Array]:
        return {
            name: np.frombuffer(self._content, np.uint8),
            f"{name}_offset": np.frombuffer(self._offsets, np.int64),
        }
