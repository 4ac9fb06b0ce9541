"""Label images beside images: which belongs to which, and the runs of each value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instseg.data.formats.common import IMAGE_SUFFIXES, FormatError, list_files
from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE

MASK_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})
"""Lossless formats only: a JPEG's ids are not those that were saved."""


def pair_files(images: Path, masks: Path, mask_suffix: str) -> list[tuple[Path, Path]]:
    """The images and their masks, both relative to their folders, sorted by image.

    An image ``a/b.jpg`` is paired with the mask ``a/b<mask_suffix>.png`` (or .bmp, .tif, .tiff).

    Raises:
        FormatError: an image without mask, a mask without image, or two files for one name.
    """
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


def check_same_size(
    mask_file: str | Path, mask_size: Size, image_file: str | Path, image_size: Size
) -> None:
    """Refuse a mask that is not as large as its image; sizes are (height, width).

    Raises:
        FormatError: they differ.
    """
    if mask_size != image_size:
        raise FormatError(
            Path(mask_file),
            f"{mask_size[0]}x{mask_size[1]} (height x width), "
            f"but its image {image_file} has {image_size[0]}x{image_size[1]}",
        )


def label_rles(labels: npt.NDArray[np.integer]) -> Iterator[tuple[int, RLE]]:
    """The compressed RLE of every value but 0 in ``[H, W]``, by ascending value.

    One pass over the image finds the runs of all values, so that a thousand cost hardly more than
    one.
    """
    flat = labels.ravel(order="F")  # COCO's runs go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    runs_by_value = np.argsort(flat[starts], kind="stable")
    values, first = np.unique(flat[starts][runs_by_value], return_index=True)
    for value, runs in zip(values.tolist(), np.split(runs_by_value, first[1:]), strict=True):
        if value == 0:
            continue
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        edges = np.append(edges, flat.size) if edges[-1] < flat.size else edges
        size = (labels.shape[0], labels.shape[1])
        yield value, rle.from_uncompressed(np.diff(edges, prepend=0).tolist(), size)


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
