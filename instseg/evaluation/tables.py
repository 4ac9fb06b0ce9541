"""Ground truth and detections as columns, the form in which they are matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from instseg.evaluation.ground_truth import image_sizes
from instseg.ops import rle
from instseg.structures.masks import RLE
from instseg.structures.run_lengths import RunLengths

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Shapes:
    """N boxes or masks on the images of a data set.

    Args:
        image: ``int64 [N]``, positions in the ascending list of image ids.
        category: ``int64 [N]``, positions in the ascending list of category ids.
        box: ``float64 [N, 4]``: x, y, width, height in pixels; zeros where masks are compared.
        area: ``float64 [N]`` in pixels, which sorts a shape into small, medium and large.
        masks: N sound run-length codes, or None where boxes are compared.
    """

    image: Ints
    category: Ints
    box: Floats
    area: Floats
    masks: RunLengths | None

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, order: Ints) -> Self:
        """The shapes at some positions, in that order."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        masks = columns.pop("masks")
        picked = {name: column[order] for name, column in columns.items()}
        return type(self)(**picked, masks=None if masks is None else masks.take(order))


@dataclass(frozen=True)
class Truth(Shapes):
    """Annotated objects.

    Args:
        crowd: ``bool [N]``, regions of many objects (COCO's ``iscrowd``).
    """

    crowd: Bools

    @cached_property
    def mask_area(self) -> Floats:
        """``float64 [N]``: pixels of each mask; `area` is what the annotation says."""
        assert self.masks is not None
        return rle.areas(self.masks).astype(np.float64)


@dataclass(frozen=True)
class Detections(Shapes):
    """Predicted objects.

    Args:
        score: ``float64 [N]``.
    """

    score: Floats


@dataclass(frozen=True)
class Vocabulary:
    """The ids that positions stand for.

    Args:
        images: ``int64``, ascending ids of the images that are scored.
        categories: ``int64``, ascending category ids.
    """

    images: Ints
    categories: Ints

    @classmethod
    def of(cls, ground_truth: dict[str, Any]) -> Vocabulary:
        """The ids of a COCO dictionary."""
        images, categories = (
            np.unique(np.array([r["id"] for r in ground_truth[key]], dtype=np.int64))
            for key in ("images", "categories")
        )
        return cls(images, categories)


@dataclass(frozen=True)
class ScoringData:
    """All that is scored.

    Args:
        iou_type: one of `IOU_TYPES`.
        vocabulary: the ids of images and categories.
        category_names: in the order of the vocabulary.
        truth: in the annotations' order, which decides among ties.
        detections: in the records' order.
    """

    iou_type: str
    vocabulary: Vocabulary
    category_names: list[str]
    truth: Truth
    detections: Detections

    @classmethod
    def of(
        cls, ground_truth: dict[str, Any], records: Sequence[dict[str, Any]], iou_type: str
    ) -> ScoringData:
        """Of a prepared COCO dictionary and checked records."""
        vocabulary = Vocabulary.of(ground_truth)
        categories = sorted(ground_truth["categories"], key=lambda c: int(c["id"]))
        return cls(
            iou_type,
            vocabulary,
            [c["name"] for c in categories],
            truth_table(
                ground_truth["annotations"], vocabulary, image_sizes(ground_truth), iou_type
            ),
            detection_table(records, vocabulary, iou_type),
        )


def truth_table(
    annotations: Sequence[dict[str, Any]],
    vocabulary: Vocabulary,
    sizes: dict[int, Any],
    iou_type: str,
) -> Truth:
    """Columns of prepared annotations (see `prepare_ground_truth`), in their order."""
    masks = None
    if iou_type != "bbox":
        masks = RunLengths.of([_code(a["segmentation"], sizes[a["image_id"]]) for a in annotations])
    return Truth(
        **_common(annotations, vocabulary),
        box=_boxes(annotations, masks),
        area=np.array([a["area"] for a in annotations], dtype=np.float64),
        masks=masks,
        crowd=np.array([a["iscrowd"] for a in annotations], dtype=np.bool_),
    )


def detection_table(
    records: Sequence[dict[str, Any]], vocabulary: Vocabulary, iou_type: str
) -> Detections:
    """Columns of checked result records (see `check_results`), in their order.

    For masks a detection's area is that of its mask: COCO's ``loadRes`` takes the box's as soon as
    records carry a box too.
    """
    masks = None
    if iou_type != "bbox":
        masks = RunLengths.of([_counts_as_bytes(r["segmentation"]) for r in records])
    box = _boxes(records, masks)
    return Detections(
        **_common(records, vocabulary),
        box=box,
        area=box[:, 2] * box[:, 3] if masks is None else rle.areas(masks).astype(np.float64),
        masks=masks,
        score=np.array([r["score"] for r in records], dtype=np.float64),
    )


def _common(records: Sequence[dict[str, Any]], vocabulary: Vocabulary) -> dict[str, Ints]:
    images = np.array([r["image_id"] for r in records], dtype=np.int64)
    categories = np.array([r["category_id"] for r in records], dtype=np.int64)
    return {
        "image": np.searchsorted(vocabulary.images, images),
        "category": np.searchsorted(vocabulary.categories, categories),
    }


def _boxes(records: Sequence[dict[str, Any]], masks: RunLengths | None) -> Floats:
    if masks is not None:
        return np.zeros((len(records), 4))
    return np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)


def _code(segmentation: Any, size: Any) -> RLE:
    if isinstance(segmentation, dict):
        return _counts_as_bytes(segmentation)
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
    return rle.from_polygons(polygons, size)


def _counts_as_bytes(code: dict[str, Any]) -> RLE:
    counts = code["counts"]
    return {"size": code["size"], "counts": counts.encode() if isinstance(counts, str) else counts}
