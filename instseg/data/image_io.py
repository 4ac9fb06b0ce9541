"""Images of every common kind as plain arrays: pictures, and label images kept exactly.

JPEG and PNG go through OpenCV, which is the fastest decoder at hand; pixels of more than 8 bits
too, because Pillow clips or cuts them; TIFF of many samples goes through tifffile, everything else
through Pillow. Sizes are checked on the header, before a pixel is decoded.

The pages of a TIFF that is a stack of images have names of their own, with which every function
here reads one of them: ``train-volume.tif#page=0`` is the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, overload

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from instseg.data.image_headers import (
    DECODER_ERRORS,
    exif_orientation,
    holds_too_little,
    jpeg_is_complete,
    peek,
    png_chunks_fit,
    reduced_flag,
    stored_bits,
)
from instseg.data.image_pixels import (
    convert_depth,
    from_opencv,
    is_gray,
    stored_values,
    upright,
)
from instseg.data.shards.members import open_image
from instseg.data.tiff import (
    TiffError,
    TiffLayout,
    is_tiff,
    page_name,
    read_layout,
    read_samples,
    split_page,
)
from instseg.structures.geometry import MAX_PIXELS, Size

_MAX_BYTES = 8  # for each of MAX_PIXELS: four channels of 16 bits
_OPENCV_FORMATS = {"JPEG", "MPO", "PNG"}
_LOSSY_FORMATS = {"JPEG", "MPO"}


class ImageError(ValueError):
    """An image file that cannot be used; the message names the path and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)


def image_size(path: str | Path) -> Size:
    """(height, width) as `read_image` would return it, from the header alone.

    Raises:
        ImageError: no image, or more than `MAX_PIXELS` pixels.
    """
    layout = _tiff_layout(path)
    if layout is not None:
        return layout.size
    with _opened(path) as (file, image):
        width, height = image.size
        return (width, height) if exif_orientation(file, image) >= 5 else (height, width)


def count_pages(path: str | Path) -> int:
    """The pages of a TIFF that are of one size and depth with its first; 1 for other files.

    Raises:
        ImageError: as `image_size`.
    """
    layout = _tiff_layout(path)
    return 1 if layout is None else layout.pages


@overload
def read_image(
    path: str | Path,
    *,
    channels: int = ...,
    bits16: Literal["scale", "stretch"] = ...,
    least_size: Size | None = ...,
) -> npt.NDArray[np.uint8]: ...
@overload
def read_image(
    path: str | Path,
    *,
    channels: int = ...,
    bits16: Literal["scale", "stretch", "keep"],
    least_size: Size | None = ...,
) -> npt.NDArray[Any]: ...
def read_image(
    path: str | Path,
    *,
    channels: int = 3,
    bits16: Literal["scale", "stretch", "keep"] = "scale",
    least_size: Size | None = None,
) -> npt.NDArray[Any]:
    """Decode to ``uint8 [H, W, channels]``, turned upright as its EXIF orientation says.

    - 3 channels, RGB: gray becomes three equal channels, a palette its colours.
    - 1 channel, gray: as stored, or one channel of a colour image whose three are equal.
    - 4 channels: RGB and alpha, for files that have alpha.
    - Any number: the samples of a TIFF's pixels, or its pages where they have one sample each.

    Unless asked for, alpha is ignored: colours are taken as stored, also where the file calls them
    transparent. Of an animation the first frame is read. An EXIF block that cannot be parsed counts
    as none.

    Args:
        path: the image file, or a page of a TIFF (``stack.tif#page=0``).
        channels: at least 1.
        bits16: what becomes of 16-bit values. "scale" takes the high byte (``value >> 8``, as
            OpenCV does); "stretch" maps the image's (or page's) smallest..largest value to
            0..255, for cameras that fill only part of the range; "keep" gives them as they are:
            ``uint16 [H, W, channels]``, whereas 8-bit images stay uint8.
        least_size: (height, width) that suffice for what is done with the image. A JPEG may then
            come out at 1/2, 1/4 or 1/8 of its size, the smallest with neither side below these,
            where its sides are multiples of 2, 4 or 8: its decoder leaves out the high
            frequencies of its blocks, which saves time and memory. Other images come whole.

    Raises:
        ImageError: missing, damaged, cut short, of an unsupported kind, of another number of
            channels, a stack of images that has to be read page by page, or more than `MAX_PIXELS`.
        ValueError: ``channels`` is less than 1.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    layout = _tiff_layout(path)
    if layout is not None and layout.pages > 1:
        return _read_pages(path, layout, channels, bits16)
    if layout is not None and not _pillow_reads(layout, channels, bits16):
        return _read_samples(path, layout, channels, bits16)
    with _opened(path) as (file, image):
        wants_alpha = channels == 4 and _has_alpha(image)
        if channels not in (1, 3) and not wants_alpha:
            raise _wrong_channels(path, _colours(image), channels, alpha=_has_alpha(image))
        orientation = exif_orientation(file, image)
        # TIFF goes through Pillow, which cuts 16-bit colour to the high byte by itself.
        high_byte = image.format == "TIFF" and image.mode == "RGB" and bits16 == "scale"
        if stored_bits(file, image) == 16 and not high_byte:
            pixels = convert_depth(_decode_16_bits(path, file, image), bits16)
            pixels = from_opencv(pixels, with_alpha=wants_alpha)
        elif image.mode in ("I", "F"):
            raise ImageError(path, "has 32-bit pixels; save it with 8 or 16 bits a channel")
        elif image.format in _OPENCV_FORMATS and image.mode != "CMYK" and not wants_alpha:
            turned = least_size[::-1] if least_size and orientation >= 5 else least_size
            pixels = _decode_opencv(path, file, image, turned)
        else:
            if "transparency" in image.info:  # Pillow warns when this step is left out
                image = image.convert("RGBA")
            pixels = np.array(image.convert("RGBA" if wants_alpha else "RGB"))  # writeable
        return upright(_gray(path, pixels) if channels == 1 else pixels, orientation)


def read_label_image(path: str | Path) -> npt.NDArray[np.integer[Any]]:
    """Read instance ids or class values ``[H, W]`` exactly as stored.

    Gray of 1, 2, 4, 8, 16 or 32 bits keeps its values, a palette image gives indices, not colours;
    colour images pass where their three channels are equal. EXIF orientation is applied.

    Raises:
        ImageError: as `read_image`; also for colour, floating-point and JPEG images.
    """
    _refuse_stack(path)
    with _opened(path) as (file, image):
        _refuse_lossy(path, image)
        if image.mode == "F":
            raise ImageError(path, "has floating-point pixels; save the labels as 16-bit PNG")
        orientation = exif_orientation(file, image)
        bits = stored_bits(file, image)
        pixels = _decode_16_bits(path, file, image) if bits == 16 else stored_values(image, bits)
        if pixels.ndim == 3:
            if not is_gray(pixels):
                raise ImageError(
                    path,
                    f"is a colour image ({image.mode}) where each pixel should be one value; save "
                    "it as gray or palette PNG whose values are the ids or classes, or read it as "
                    "semantic_png with classes given by colour: {name: [r, g, b]}",
                )
            pixels = pixels[..., 0]
        return upright(pixels, orientation)


def read_label_colours(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a label image whose colours are the classes, ``uint8 [H, W, 3]`` RGB; see `read_image`.

    Raises:
        ImageError: as `read_image`; also for JPEG, which does not keep colours.
    """
    _refuse_stack(path)
    with _opened(path) as (_, image):
        _refuse_lossy(path, image)
    return read_image(path)


@contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Decoders' errors become `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except TiffError as error:
        raise ImageError(path, str(error)) from error
    except FileNotFoundError as error:
        raise ImageError(path, "there is no such file") from error
    except DECODER_ERRORS as error:
        raise ImageError(path, f"cannot be read as an image ({error})") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[IO[bytes], Image.Image]]:
    """The file and its header, with the size checked."""
    file_path, page = split_page(path)
    with _named_errors(path), open_image(file_path) as file, Image.open(file) as image:
        if page is not None:
            image.seek(page)
        _check_pixels(path, image.size[::-1])
        if holds_too_little(file, image):
            raise ImageError(path, "the file is cut short: too few bytes for its pixels")
        yield file, image


def _check_pixels(path: str | Path, size: Size) -> None:
    height, width = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            path, f"{width} x {height} pixels is more than {MAX_PIXELS}; cut it into tiles"
        )


def _refuse_stack(path: str | Path) -> None:
    pages = count_pages(path)
    if pages > 1:
        raise ImageError(path, f"is a stack of {pages} pages; name one, such as {path}#page=0")


def _refuse_lossy(path: str | Path, image: Image.Image) -> None:
    if image.format in _LOSSY_FORMATS:
        raise ImageError(path, "JPEG does not keep label values; save the labels as PNG")


def _tiff_layout(path: str | Path) -> TiffLayout | None:
    """The header of a TIFF, its size checked; None for other files."""
    file, page = split_page(path)
    with _named_errors(path):
        if not is_tiff(file):
            if page is not None:
                raise ImageError(path, "only a TIFF has pages, and this file is none")
            return None
        layout = read_layout(file, page)
    _check_pixels(path, layout.size)
    return layout


def _pillow_reads(layout: TiffLayout, channels: int, bits16: str) -> bool:
    """Whether a page is of the kinds that Pillow reads, and reads without loss."""
    exact = layout.bits <= 8 or layout.samples == 1 or (layout.samples == 3 and bits16 == "scale")
    return exact and layout.colours in (1, 3) and channels in (1, 3)


def _read_pages(
    path: str | Path, layout: TiffLayout, channels: int, bits16: Any
) -> npt.NDArray[Any]:
    """The pages of a TIFF as the channels of one image."""
    if layout.samples != 1 or layout.pages != channels:
        whole = (
            f", or set model.image_channels to {layout.pages} if they are the channels of one image"
        )
        raise ImageError(
            path,
            f"has {layout.pages} pages, but model.image_channels is {channels}; if they are "
            f"images, name one, such as {path}#page=0{whole if layout.samples == 1 else ''}",
        )
    _check_bytes(path, layout, channels)
    names = [page_name(str(path), page, layout.pages) for page in range(layout.pages)]
    return np.concatenate([read_image(name, channels=1, bits16=bits16) for name in names], axis=2)


def _read_samples(
    path: str | Path, layout: TiffLayout, channels: int, bits16: str
) -> npt.NDArray[Any]:
    """The samples of a TIFF's pixels as channels; alpha only where it is asked for."""
    colours, samples = layout.colours, layout.samples
    if channels not in (samples, colours) and (colours, channels) not in ((1, 3), (3, 1)):
        raise _wrong_channels(path, colours, channels, alpha=samples > colours)
    _check_bytes(path, layout, samples)
    file, page = split_page(path)
    with _named_errors(path):
        pixels, orientation = read_samples(file, page)
    pixels = convert_depth(pixels if channels == samples else pixels[..., :colours], bits16)
    if channels == 1:
        pixels = _gray(path, pixels)
    elif channels == 3 and colours == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return upright(pixels, orientation)


def _check_bytes(path: str | Path, layout: TiffLayout, channels: int) -> None:
    needed = layout.size[0] * layout.size[1] * channels * max(layout.bits // 8, 1)
    limit = _MAX_BYTES * MAX_PIXELS
    if needed > limit:
        raise ImageError(path, f"{needed} bytes of pixels are more than {limit}; cut it into tiles")


def _wrong_channels(path: str | Path, found: int, channels: int, *, alpha: bool) -> ImageError:
    """The error about a number of channels, with those that the file can be read as."""
    valid: Collection[int] = {1: (1, 3), 3: (3,)}.get(found, (found,))
    valid = sorted({*valid, *([4 if found in (1, 3) else found + 1] if alpha else [])})
    return ImageError(
        path,
        f"has {found} channel{'' if found == 1 else 's'}{' and alpha' if alpha else ''}, but "
        f"model.image_channels is {channels}; set it to {' or '.join(map(str, valid))}",
    )


def _colours(image: Image.Image) -> int:
    return 1 if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16") else 3


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def _gray(path: str | Path, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One channel of an image whose colours are equal."""
    if not is_gray(pixels):
        raise ImageError(
            path,
            "is a colour image, but model.image_channels is 1; set it to 3, or save it as gray",
        )
    return pixels[..., :1]


def _decode_opencv(
    path: str | Path, file: IO[bytes], image: Image.Image, least_size: Size | None
) -> npt.NDArray[Any]:
    """RGB as stored, of a JPEG at a reduced size where that suffices."""
    data = peek(file, 0)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if image.format != "PNG":
        # OpenCV 4 fills the missing part of a JPEG with gray and says so on stderr only.
        if not jpeg_is_complete(data):
            raise ImageError(path, "the file is cut short")
        if least_size is not None:
            flags |= reduced_flag((image.height, image.width), least_size)
    return _imdecode(path, data, flags)


def _decode_16_bits(
    path: str | Path, file: IO[bytes], image: Image.Image
) -> npt.NDArray[np.uint16]:
    """Gray ``[H, W]``, or PNG colour ``[H, W, C]`` in OpenCV's order, as stored."""
    if image.format == "PNG":
        return _imdecode(path, peek(file, 0), cv2.IMREAD_UNCHANGED)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    raise ImageError(path, f"16-bit {image.mode} {image.format} is not read; save it as PNG")


def _imdecode(path: str | Path, data: bytes, flags: int) -> npt.NDArray[Any]:
    if not png_chunks_fit(data):
        raise ImageError(path, "the file is cut short")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ImageError(path, "the file is damaged or cut short")
    return pixels
