"""Instance-id images: one label image for each image, pixel value = instance, 0 = background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instseg.data.formats.common import (
    IMAGE_SUFFIXES,
    Coco,
    CocoBuilder,
    FormatError,
    Progress,
    Record,
    list_files,
    tracked,
)
from instseg.data.image_io import image_size, read_label_image
from instseg.ops import rle
from instseg.structures.masks import RLE

MASK_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})
"""Lossless formats only: a JPEG's ids are not those that were saved."""


def read(
    images: Path,
    masks: Path,
    *,
    category: str = "object",
    mask_suffix: str = "",
    on_progress: Progress | None = None,
) -> Coco:
    """Read a folder of images and a folder of instance-id images.

    An image ``a/b.jpg`` is paired with the mask ``a/b<mask_suffix>.png`` (or .bmp, .tif, .tiff).
    An id is one instance, whether its pixels are connected or not.

    Args:
        images: the image root; file names in the result are relative to it.
        masks: folder of label images of any integer depth.
        category: name of the one class.
        mask_suffix: what a mask's name has beyond its image's, such as ``"_mask"``.
        on_progress: called with (images done, images in all).

    Returns:
        A COCO dictionary with compressed RLE, tight boxes and pixel areas.

    Raises:
        FormatError: an image without mask, a mask without image, two files for one name, or a
            mask whose size is not its image's.
        ImageError: a file that cannot be decoded.
    """
    builder = CocoBuilder([category])
    for image_name, mask_name in tracked(_pairs(images, masks, mask_suffix), on_progress):
        mask_file = masks / mask_name
        size = image_size(images / image_name)
        labels = read_label_image(mask_file)
        if labels.shape != size:
            raise FormatError(
                mask_file,
                f"{labels.shape[0]}x{labels.shape[1]} (height x width), "
                f"but its image {images / image_name} has {size[0]}x{size[1]}",
            )
        image_id = builder.add_image(Record(mask_file), image_name.as_posix(), size)
        for instance, mask in instance_rles(labels):
            record = Record(mask_file, f"instance {instance}")
            builder.add_mask(record, image_id, category, mask)
    return builder.build()


def instance_rles(labels: npt.NDArray[np.integer]) -> Iterator[tuple[int, RLE]]:
    """The compressed RLE of every id but 0 in ``[H, W]``, by ascending id.

    One pass over the image finds the runs of all instances, so that a thousand instances cost
    hardly more than one.
    """
    flat = labels.ravel(order="F")  # COCO's runs go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    runs_by_id = np.argsort(flat[starts], kind="stable")
    ids, first = np.unique(flat[starts][runs_by_id], return_index=True)
    for instance, runs in zip(ids.tolist(), np.split(runs_by_id, first[1:]), strict=True):
        if instance == 0:
            continue
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        edges = np.append(edges, flat.size) if edges[-1] < flat.size else edges
        size = (labels.shape[0], labels.shape[1])
        yield instance, rle.from_uncompressed(np.diff(edges, prepend=0).tolist(), size)


def _pairs(images: Path, masks: Path, mask_suffix: str) -> list[tuple[Path, Path]]:
    image_files = _by_key(images, IMAGE_SUFFIXES, "")
    mask_files = _by_key(masks, MASK_SUFFIXES, mask_suffix)
    for folder, files, others, what in (
        (images, image_files, mask_files, f"images without a mask in {masks}"),
        (masks, mask_files, image_files, f"masks without an image in {images}"),
    ):
        alone = [str(files[key]) for key in files if key not in others]
        if alone:
            more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
            raise FormatError(
                folder,
                f"{len(alone)} {what}: {', '.join(alone[:10])}{more}. A mask is named like its "
                f"image plus '{mask_suffix}' (mask_suffix) and is lossless "
                f"({', '.join(sorted(MASK_SUFFIXES))})",
            )
    return [(image_files[key], mask_files[key]) for key in image_files]


def _by_key(folder: Path, suffixes: frozenset[str], ending: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in list_files(folder, suffixes):
        stem = path.with_suffix("").as_posix()
        if not stem.endswith(ending):
            raise FormatError(folder / path, f"its name does not end in '{ending}' (mask_suffix)")
        key = stem.removesuffix(ending)
        if key in files:
            raise FormatError(folder, f"{files[key]} and {path} have one name: remove one of them")
        files[key] = path
    return files
