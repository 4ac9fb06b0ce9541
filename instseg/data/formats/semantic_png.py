"""Semantic masks: one label image for each image, pixel value or colour = class."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instseg.data.formats.common import Coco, CocoBuilder, FormatError, Progress, Record, tracked
from instseg.data.formats.label_images import check_same_size, pair_files
from instseg.data.formats.mask_values import (
    Legend,
    Value,
    binary_values,
    detect_binary,
    make_legend,
)
from instseg.data.image_io import count_pages, image_size, read_label_colours, read_label_image
from instseg.data.tiff import page_name
from instseg.ops import rle
from instseg.ops.label_images import label_rles
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE

_SHOWN = 5  # unknown values listed before an ellipsis

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Page:
    """One image and its mask: names to show and to read."""

    file_name: str
    image: str
    mask: str


@dataclass(frozen=True)
class _Mask:
    """The runs of each value of one mask."""

    page: _Page
    size: Size
    runs: dict[int, RLE]


def read(
    images: Path,
    masks: Path,
    *,
    classes: Mapping[str, Value] | None = None,
    background: Value | None = None,
    ignore: Value | None = None,
    mask_suffix: str = "",
    category: str = "foreground",
    on_progress: Progress | None = None,
) -> Coco:
    """Read a folder of images and a folder of semantic masks.

    An image ``a/b.jpg`` is paired with the mask ``a/b<mask_suffix>.png`` (or .bmp, .tif, .tiff). A
    TIFF mask of several pages belongs to an image of as many, which are as many images; their names
    end in the page (``stack.tif#page=07``). What the values were taken for is logged.

    Args:
        images: the image root, to which file names in the result are relative; or one file, such as
            a stack, whose folder is the root (`image_root`).
        masks: folder of label images, or one file where ``images`` is one.
        classes: value of each class in gray or palette masks, or its colour; categories get ids
            from 1 in this order. None: binary masks of 0 and 1, or of 0 and 255, are recognised.
        background: value of what is no class. None: 0 (black), unless that has another meaning.
        ignore: value of pixels whose class is unknown. None: 255, unless that has another meaning;
            no colour.
        mask_suffix: what a mask's name has beyond its image's, such as ``"_mask"``.
        category: name of the one class of recognised binary masks.
        on_progress: called with (images done, images in all).

    Returns:
        A COCO dictionary with, for each image, one annotation of compressed RLE for each class that
        is in it, and one of ``iscrowd`` 1 (of the first category) for the pixels to ignore.

    Raises:
        FormatError: files that do not pair, a mask whose size or number of pages is not its
            image's, a value that means nothing, or no pixel of a class in the whole set.
        ImageError: a file that cannot be decoded, or a JPEG as mask.
        ValueError: ``classes``, ``background`` and ``ignore`` contradict each other.
    """
    legend = None if classes is None else make_legend(classes, background, ignore)
    known = binary_values(background, ignore) if legend is None else legend.known
    pages = list(_pages(images, masks, mask_suffix))
    found = []
    for page in tracked(pages, on_progress):
        mask = _read_mask(page, of_colours=legend is not None and legend.of_colours)
        _check_values(mask, known, legend)
        found.append(mask)
    values = sorted({value for mask in found for value in mask.runs})
    if legend is None:
        try:
            legend = detect_binary(values, background, ignore, category)
        except ValueError as error:
            raise FormatError(masks, str(error)) from None
    if not legend.names.keys() & set(values):
        raise FormatError(
            masks,
            f"all masks are background: no pixel is of a class; values mean {legend.describe()}",
        )
    _logger.info(
        "%s: the masks hold the values {%s}: read as %s",
        masks,
        ", ".join(map(legend.show, values)),
        legend.describe(),
    )
    return _build(found, legend)


def image_root(images: Path) -> Path:
    """The folder that the result's file names are relative to."""
    return images if images.is_dir() else images.parent


def _pages(images: Path, masks: Path, mask_suffix: str) -> Iterator[_Page]:
    if images.is_file() and masks.is_file():
        pairs = [(Path(images.name), Path(masks.name))]
    else:
        pairs = pair_files(images, masks, mask_suffix)
    image_folder, mask_folder = image_root(images), image_root(masks)
    for image_name, mask_name in pairs:
        name = image_name.as_posix()
        image, mask = image_folder / image_name, mask_folder / mask_name
        pages = count_pages(mask)
        if pages == 1:  # the image's pages, if it has several, are its channels
            yield _Page(name, str(image), str(mask))
            continue
        if (others := count_pages(image)) != pages:
            raise FormatError(mask, f"has {pages} pages, but its image {image} has {others}")
        for i in range(pages):
            yield _Page(*(page_name(str(file), i, pages) for file in (name, image, mask)))


def _read_mask(page: _Page, *, of_colours: bool) -> _Mask:
    if of_colours:
        red, green, blue = np.moveaxis(read_label_colours(page.mask).astype(np.int64), 2, 0)
        labels: npt.NDArray[np.int64] = red << 16 | green << 8 | blue
    else:
        labels = read_label_image(page.mask).astype(np.int64)
    size = image_size(page.image)
    check_same_size(page.mask, labels.shape, page.image, size)
    runs = {value - 1: runs for value, runs in label_rles(labels + 1)}  # label_rles leaves out 0
    return _Mask(page, size, runs)


def _check_values(mask: _Mask, known: set[int], legend: Legend | None) -> None:
    unknown = [value for value in mask.runs if value not in known]
    if not unknown:
        return
    show = str if legend is None else legend.show
    listed = ", ".join(f"{show(v)} ({rle.area(mask.runs[v])} pixels)" for v in unknown[:_SHOWN])
    listed += ", ..." if len(unknown) > _SHOWN else ""
    if legend is None:
        valid = (
            "without `classes` masks must be binary, of 0 and 1 or 0 and 255 (255 beside 1 is "
            "ignored); name the values in `classes`"
        )
    else:
        valid = f"valid are {legend.describe()}; name it in `classes` or as `ignore`"
    if len(unknown) > _SHOWN:
        valid += "; so many values are what smoothing, resizing or JPEG leave in a mask"
    raise FormatError(Path(mask.page.mask), f"holds values without meaning: {listed}; {valid}")


def _build(found: list[_Mask], legend: Legend) -> Coco:
    builder = CocoBuilder(list(legend.names.values()))
    first = next(iter(legend.names.values()))
    for mask in found:
        file = Path(mask.page.mask)
        image_id = builder.add_image(Record(file), mask.page.file_name, mask.size)
        for value, name in legend.names.items():
            if value in mask.runs:
                builder.add_mask(Record(file, name), image_id, name, mask.runs[value])
        if legend.ignore in mask.runs:
            record = Record(file, "ignored pixels")
            runs = mask.runs[legend.ignore]
            builder.add_mask(record, image_id, first, runs, is_crowd=True)
    return builder.build()
