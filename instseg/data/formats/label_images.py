"""Label images beside images: which belongs to which, and the runs of each value."""

from __future__ import annotations

from pathlib import Path

from instseg.data.formats.common import IMAGE_SUFFIXES, FormatError, list_files
from instseg.structures.geometry import Size

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
