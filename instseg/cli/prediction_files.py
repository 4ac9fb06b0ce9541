"""The files that `instseg predict` reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from instseg.data.image_io import count_pages
from instseg.data.tiff import page_name, split_page


def with_pages(files: Iterable[Path], channels: int) -> Iterator[Path]:
    """Files, and in place of a stack of images its pages.

    A TIFF of as many pages as an image has channels is one image.

    Raises:
        ImageError: a file is no image.
    """
    for file in files:
        pages = count_pages(file)
        if pages in (1, channels):
            yield file
        else:
            yield from (Path(page_name(str(file), page, pages)) for page in range(pages))


def output_stems(images: Sequence[Path], folder: Path, endings: Sequence[str]) -> dict[Path, Path]:
    """Where the files of each image go, but for their endings; equal names get a number.

    Args:
        images: files, and pages of files.
        folder: to write to.
        endings: of all files that are written for an image.

    Raises:
        FileExistsError: a file would be written over one of the images.
    """
    sources = {split_page(path)[0].resolve() for path in images}
    taken: set[Path] = set()
    stems = {}
    for path in images:
        name = _stem(path)
        for number in count():
            stem = folder / (f"{name}_{number}" if number else name)
            files = [with_ending(stem, ending) for ending in endings]
            if taken.isdisjoint(files):
                break
        for file in files:
            if file.resolve() in sources:
                raise FileExistsError(f"{file} is one of the images: choose another --output")
        taken.update(files)
        stems[path] = stem
    return stems


def _stem(path: Path) -> str:
    file, page = split_page(path)
    return file.stem if page is None else f"{file.stem}_page{path.name.rpartition('=')[2]}"


def with_ending(stem: Path, ending: str) -> Path:
    """One of the files of `output_stems`."""
    return stem.with_name(stem.name + ending)
