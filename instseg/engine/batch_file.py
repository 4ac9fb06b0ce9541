"""Batches as tensors and JSON, and back: no pickle, so that reading them runs no code.

Segmentations are written as in COCO's annotation files: polygons as lists of vertices, run-length
codes as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from instseg.engine.plain_batch import PlainBatch
from instseg.engine.protocols import Batch, PerImage
from instseg.ops import rle
from instseg.structures import BitMasks, Instances, Masks, RoIMasks, SemanticMap, SparseMasks
from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.image_target import ImageTarget
from instseg.structures.masks import Segmentation
from instseg.structures.run_lengths import RunLengths
from instseg.structures.semantic_map import Threshold


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


_Side = Annotated[int, Field(ge=1)]
_Size = tuple[_Side, _Side]
_Vertices = Annotated[list[tuple[float, float]], Field(min_length=3)]


class _RunLengths(_Description):
    size: _Size
    counts: str


class _Sparse(_Description):
    kind: Literal["sparse"] = "sparse"
    segmentations: list[list[_Vertices] | _RunLengths]
    source_size: _Size
    size: _Size
    transform: tuple[float, float, float, float]


class _Bits(_Description):
    kind: Literal["bits"] = "bits"


class _RoI(_Description):
    kind: Literal["roi"] = "roi"
    aligned: bool


_MaskDescription = Annotated[_Sparse | _Bits | _RoI, Field(discriminator="kind")]


class _Instances(_Description):
    kind: Literal["instances"] = "instances"
    image_size: _Size
    masks: _MaskDescription | None


class _SemanticMap(_Description):
    kind: Literal["semantic_map"] = "semantic_map"
    threshold: Threshold


class _Picture(_Description):
    kind: Literal["picture"] = "picture"


_TargetDescription = Annotated[_Instances | _SemanticMap | _Picture, Field(discriminator="kind")]


class BatchDescription(_Description):
    """All of a batch that is not a tensor."""

    image_ids: list[int]
    original_sizes: list[_Size]
    paths: list[str]
    targets: list[_TargetDescription]


def pack_batch(batch: Batch) -> tuple[dict[str, Tensor], BatchDescription]:
    """A batch as tensors by name (not copied) and what else is to be known of it.

    Raises:
        TypeError: a target is none of `Instances`, `SemanticMap`, `ImageTarget`.
    """
    tensors: dict[str, Tensor] = {f"{i}.image": image for i, image in enumerate(batch.images)}
    targets = [
        _pack_target(target, f"{i}.target.", tensors) for i, target in enumerate(batch.targets)
    ]
    return tensors, BatchDescription(
        image_ids=list(batch.image_ids),
        original_sizes=list(batch.original_sizes),
        paths=[str(path) for path in batch.paths],
        targets=targets,
    )


def unpack_batch(tensors: Mapping[str, Tensor], description: BatchDescription) -> PlainBatch:
    """The batch that `pack_batch` took apart.

    Raises:
        ValueError: a tensor is missing, left over or of a shape or type that does not fit; the
            message names it.
    """
    rest = dict(tensors)
    count = len(description.targets)
    lengths = {len(description.image_ids), len(description.original_sizes), len(description.paths)}
    if lengths != {count}:
        raise ValueError(f"{count} targets, but other numbers of ids, sizes or paths: {lengths}")
    images, targets = [], []
    for i, about in enumerate(description.targets):
        image = _take(rest, f"{i}.image")
        target = _unpack_target(about, f"{i}.target.", rest)
        if image.ndim != 3 or tuple(image.shape[1:]) != tuple(target.image_size):
            raise ValueError(
                f"'{i}.image' is {list(image.shape)}, its target is for an image of height x width "
                f"{target.image_size[0]} x {target.image_size[1]}"
            )
        images.append(image)
        targets.append(target)
    if rest:
        raise ValueError(f"unknown tensors {sorted(rest)[:5]}")
    sizes: list[Size] = list(description.original_sizes)
    return PlainBatch(images, targets, description.image_ids, sizes, description.paths)


def _pack_target(
    target: PerImage, prefix: str, tensors: dict[str, Tensor]
) -> _Instances | _SemanticMap | _Picture:
    def keep(**named: Tensor | None) -> None:
        tensors.update({prefix + name: t for name, t in named.items() if t is not None})

    if isinstance(target, Instances):
        keep(boxes=target.boxes, labels=target.labels, scores=target.scores, crowd=target.is_crowd)
        masks = _pack_masks(target.masks, prefix, tensors)
        return _Instances(image_size=target.image_size, masks=masks)
    if isinstance(target, SemanticMap):
        keep(labels=target.labels, scores=target.scores, weights=target.weights)
        return _SemanticMap(threshold=target.threshold)
    if isinstance(target, ImageTarget):
        keep(image=target.image)
        return _Picture()
    raise TypeError(f"targets of the type {type(target).__name__} cannot be stored")


def _unpack_target(
    about: _Instances | _SemanticMap | _Picture, prefix: str, rest: dict[str, Tensor]
) -> PerImage:
    if isinstance(about, _Instances):
        return Instances(
            image_size=about.image_size,
            boxes=_take(rest, prefix + "boxes"),
            labels=_take(rest, prefix + "labels"),
            scores=rest.pop(prefix + "scores", None),
            masks=None if about.masks is None else _unpack_masks(about.masks, prefix, rest),
            is_crowd=rest.pop(prefix + "crowd", None),
        )
    if isinstance(about, _SemanticMap):
        return SemanticMap(
            _take(rest, prefix + "labels"),
            scores=rest.pop(prefix + "scores", None),
            weights=rest.pop(prefix + "weights", None),
            threshold=about.threshold,
        )
    return ImageTarget(_take(rest, prefix + "image"))


def _pack_masks(
    masks: Masks | None, prefix: str, tensors: dict[str, Tensor]
) -> _Sparse | _Bits | _RoI | None:
    if masks is None:
        return None
    if isinstance(masks, BitMasks):
        tensors[prefix + "masks"] = masks.tensor
        return _Bits()
    if isinstance(masks, RoIMasks):
        tensors[prefix + "masks"] = masks.probs
        return _RoI(aligned=masks.aligned)
    move = masks.transform
    return _Sparse(
        segmentations=[_pack_segmentation(s) for s in masks.segmentations],
        source_size=masks.source_size,
        size=masks.size,
        transform=(move.scale_x, move.shift_x, move.scale_y, move.shift_y),
    )


def _unpack_masks(
    about: _Sparse | _Bits | _RoI, prefix: str, rest: dict[str, Tensor]
) -> SparseMasks | BitMasks | RoIMasks:
    if isinstance(about, _Bits):
        return BitMasks(_take(rest, prefix + "masks"))
    if isinstance(about, _RoI):
        return RoIMasks(_take(rest, prefix + "masks"), about.aligned)
    segmentations = [_unpack_segmentation(s, about.source_size) for s in about.segmentations]
    codes = [s for s in segmentations if isinstance(s, dict)]
    if codes and int(rle.areas(RunLengths.of(codes)).min()) < 0:
        raise ValueError("a run-length code does not fill its image")
    return SparseMasks(
        segmentations, about.source_size, about.size, AxisTransform(*about.transform)
    )


def _pack_segmentation(segmentation: Segmentation) -> list[Any] | _RunLengths:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        height, width = segmentation["size"]
        return _RunLengths(size=(height, width), counts=text)
    return [[(float(x), float(y)) for x, y in polygon] for polygon in segmentation]


def _unpack_segmentation(
    about: Sequence[Sequence[tuple[float, float]]] | _RunLengths, source_size: Size
) -> Segmentation:
    if not isinstance(about, _RunLengths):
        return [np.array(polygon, dtype=np.float64) for polygon in about]
    if tuple(about.size) != tuple(source_size):
        raise ValueError(
            f"a run-length code is for an image of {about.size}, the masks for one of {source_size}"
        )
    return {"size": list(about.size), "counts": about.counts.encode("ascii")}


def _take(rest: dict[str, Tensor], name: str) -> Tensor:
    if name not in rest:
        raise ValueError(f"the tensor '{name}' is missing")
    return rest.pop(name)
