"""TIFF beyond what Pillow reads: many pages, many samples a pixel, 16-bit colour.

A page of a stack is named like a file: ``train-volume.tif#page=07`` is the eighth page.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tifffile import TiffFile, TiffPage

from instseg.data.shards.members import open_image
from instseg.structures.geometry import Size

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_PAGE = re.compile(r"(?P<file>.+)#page=(?P<page>\d{1,9})", re.DOTALL)

# Values of TIFF 6.0's tags.
_MIN_IS_BLACK, _RGB, _CMYK = 1, 2, 5
_INTERLEAVED = 1
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)

_MAX_CHUNK = 2**30  # bytes of a strip or tile


class TiffError(ValueError):
    """A TIFF that cannot be used; the message has the reason, without the path."""


@dataclass(frozen=True)
class TiffLayout:
    """What the header of one page says.

    Args:
        size: (height, width), upright.
        samples: values of a pixel, as stored.
        colours: the channels among them: without alpha, and RGB for CMYK.
        bits: of a sample.
        pages: how many pages there are of this size and depth; 1 where a page was asked for.
    """

    size: Size
    samples: int
    colours: int
    bits: int
    pages: int


def split_page(path: str | Path) -> tuple[Path, int | None]:
    """The file and the page (from 0) of ``stack.tif#page=7``; of other paths the page is None."""
    match = _PAGE.fullmatch(str(path))
    return (Path(match["file"]), int(match["page"])) if match else (Path(path), None)


def page_name(name: str, page: int, pages: int = 1) -> str:
    """The name of one of ``pages`` pages: zeros in front, so that names sort as the pages do."""
    return f"{name}#page={page:0{len(str(pages - 1))}d}"


def is_tiff(path: Path) -> bool:
    """Whether a file starts as TIFF or BigTIFF.

    Raises:
        OSError: it cannot be read.
    """
    with open_image(path) as file:
        return file.read(4) in _MAGIC


def read_layout(path: Path, page: int | None = None) -> TiffLayout:
    """Read the header of a page, by default the first.

    Raises:
        TiffError: no such page, or the file is damaged.
        OSError: it cannot be read.
    """
    with _page(path, page) as header:
        turned = _orientation(header) >= 5
        size = int(header.imagelength), int(header.imagewidth)  # tuples in some damaged files
        samples = int(header.samplesperpixel)
        if min(*size, samples) < 1:
            raise TiffError("has no pixels")
        return TiffLayout(
            size=size[::-1] if turned else size,
            samples=samples,
            colours=3 if header.photometric == _CMYK else samples - _alphas(header),
            bits=int(header.bitspersample),
            pages=1 if page is not None else _count_alike(header),
        )


def read_samples(path: Path, page: int | None = None) -> tuple[npt.NDArray[Any], int]:
    """All samples of a page as stored, and how they are turned.

    The caller has checked `read_layout`: an image of its size fits in memory.

    Returns:
        ``uint8 or uint16 [H, W, samples]`` in the file's order; the EXIF orientation, 1 to 8.

    Raises:
        TiffError: no such page, damaged, or stored in a way that is not read.
        OSError: it cannot be read.
    """
    with _page(path, page) as header:
        if header.photometric not in (_MIN_IS_BLACK, _RGB) or header.imagedepth != 1:
            raise TiffError("its pixels are neither gray nor RGB; save it as minisblack or RGB")
        if header.dtype not in (np.uint8, np.uint16):
            raise TiffError(f"has {header.dtype} pixels; save it with 8 or 16 bits a channel")
        _check_segments(header)
        pixels = header.asarray(squeeze=False, maxworkers=1)  # [planes, 1, H, W, samples]
        pixels = np.moveaxis(pixels[:, 0], 0, 2).reshape(*pixels.shape[2:4], -1)
        return pixels.astype(header.dtype.newbyteorder("="), copy=False), _orientation(header)


@contextmanager
def _page(path: Path, page: int | None) -> Iterator[TiffPage]:
    """The header of a page; whatever tifffile meets in a damaged file becomes `TiffError`."""
    try:
        with open_image(path) as source:
            _refuse_loop(source)
        with open_image(path) as source, TiffFile(source) as file:
            if page is not None and page >= len(file.pages):
                raise TiffError(f"has no page {page}: its pages are 0 to {len(file.pages) - 1}")
            header = file.pages[page or 0]
            if not isinstance(header, TiffPage):
                raise TiffError("its pages have no headers of their own; save it as plain TIFF")
            yield header
    except (TiffError, OSError):
        raise
    except Exception as error:  # tifffile trusts headers: anything from KeyError to MemoryError
        raise TiffError(f"cannot be read as TIFF ({type(error).__name__}: {error})") from error


def _refuse_loop(file: IO[bytes]) -> None:
    """Refuse a chain of pages that comes back to one of them: tifffile would follow it for ever."""
    header = file.read(16)
    order = ">" if header[:2] == b"MM" else "<"
    is_big = 43 in header[2:4]
    number, entry, offset = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    place = 8 if is_big else 4
    seen: set[int] = set()
    try:
        (page,) = struct.unpack_from(order + offset, header, place)
        while page:
            if page in seen:
                raise TiffError("its chain of pages is a loop; the file is damaged")
            seen.add(page)
            file.seek(page)
            size = struct.calcsize(order + number)
            (tags,) = struct.unpack(order + number, file.read(size))
            file.seek(page + size + tags * entry)
            (page,) = struct.unpack(order + offset, file.read(struct.calcsize(order + offset)))
    except (struct.error, OverflowError, OSError):
        return  # the chain is cut short, which tifffile says of itself


def _count_alike(first: TiffPage) -> int:
    """The pages like the first: no thumbnails."""
    pages = [page for page in first.parent.pages if isinstance(page, TiffPage)]
    kind = (first.shape, first.dtype, first.photometric)
    return 1 + sum(
        (page.shape, page.dtype, page.photometric) == kind and not page.is_reduced
        for page in pages[1:]
    )


def _alphas(header: TiffPage) -> int:
    """Samples that are no channels: alpha, declared or the one beside RGB."""
    if header.photometric == _RGB:
        return int(header.samplesperpixel == 4)
    return int(header.samplesperpixel == 2 and header.extrasamples[:1] in ((1,), (2,)))


def _orientation(header: TiffPage) -> int:
    tag = header.tags.get(274)
    value = tag.value if tag is not None else 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_segments(header: TiffPage) -> None:
    """Refuse strips and tiles that reach past the file's end or inflate to more than their pixels.

    tifffile inflates without a limit: a strip of a few megabytes can hold gigabytes of zeros.
    """
    ends = [a + n for a, n in zip(header.dataoffsets, header.databytecounts, strict=True)]
    handle = header.parent.filehandle
    size = handle.size
    if max(ends) > size or sum(header.databytecounts) > size:
        raise TiffError("the file is cut short")
    if header.compression == _UNCOMPRESSED:
        pixels = header.imagelength * header.imagewidth * header.samplesperpixel
        if sum(header.databytecounts) < pixels * header.bitspersample // 8:
            raise TiffError("the file is cut short")
        return
    if header.compression not in _DEFLATE:
        raise TiffError(
            f"compression {getattr(header.compression, 'name', header.compression)} is read only "
            "for 8-bit gray and RGB; save it uncompressed or with deflate (zlib)"
        )
    if len(ends) != math.prod(header.chunked) or min(header.databytecounts) < 1:
        raise TiffError("strips or tiles are missing")  # tifffile would fill in zeros
    rows, columns = min(header.rowsperstrip, header.imagelength), header.imagewidth
    if header.is_tiled:
        rows, columns = header.tilelength, header.tilewidth
    samples = header.samplesperpixel if header.planarconfig == _INTERLEAVED else 1
    limit = rows * columns * samples * header.bitspersample // 8
    if limit > _MAX_CHUNK:
        raise TiffError(f"has strips or tiles of {limit} bytes; save it with smaller ones")
    for offset, count in zip(header.dataoffsets, header.databytecounts, strict=True):
        handle.seek(offset)
        inflate = zlib.decompressobj()
        inflate.decompress(handle.read(count), limit + 1)
        if not inflate.eof:
            raise TiffError("a strip or tile is damaged or larger than its part of the image")
