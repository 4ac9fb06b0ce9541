"""Images of every common kind as plain arrays: uint8 RGB pictures, and label images kept exactly.

JPEG and PNG go through OpenCV, which is the fastest decoder at hand; pixels of more than 8 bits
too, because Pillow clips or cuts them; everything else goes through Pillow. Sizes are checked on
the header, before a pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from instseg.structures.geometry import Size

MAX_PIXELS = 2**27
"""The largest picture that is read (134 million pixels); Pillow itself refuses little more."""

_ORIENTATION = 0x0112
_OPENCV_FORMATS = {"JPEG", "MPO", "PNG"}
_LOSSY_FORMATS = {"JPEG", "MPO"}

# What the decoders raise on damaged files, found by feeding them damaged files.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    cv2.error,
    Image.DecompressionBombError,
)


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
    with _opened(path) as (file, image):
        width, height = image.size
        return (width, height) if _orientation(file, image) >= 5 else (height, width)


def read_image(
    path: str | Path, *, bits16: Literal["scale", "stretch"] = "scale"
) -> npt.NDArray[np.uint8]:
    """Decode to RGB, ``uint8 [H, W, 3]``, turned upright as its EXIF orientation says.

    Gray becomes three equal channels, a palette its colours. Alpha is ignored: colours are taken as
    stored, also where the file calls them transparent. Of a file with several frames the first is
    read. An EXIF block that cannot be parsed counts as none.

    Args:
        path: the image file.
        bits16: how 16-bit values become 8-bit ones. "scale" takes the high byte (``value >> 8``,
            as OpenCV does); "stretch" maps the image's smallest..largest value to 0..255, for
            cameras that fill only part of the range.

    Raises:
        ImageError: missing, damaged, cut short, of an unsupported kind, or more than `MAX_PIXELS`.
    """
    with _opened(path) as (file, image):
        orientation = _orientation(file, image)
        # TIFF goes through Pillow, which cuts 16-bit colour to the high byte by itself.
        high_byte = image.format == "TIFF" and image.mode == "RGB" and bits16 == "scale"
        if _bits(file, image) == 16 and not high_byte:
            pixels = _as_rgb(_to_8_bits(_decode_16_bits(path, file, image), bits16))
        elif image.mode in ("I", "F"):
            raise ImageError(path, "has 32-bit pixels; save it with 8 or 16 bits a channel")
        elif image.format in _OPENCV_FORMATS and image.mode != "CMYK":
            pixels = _as_rgb(_decode_opencv(path, file, image))
        else:
            if "transparency" in image.info:  # Pillow warns when this step is left out
                image = image.convert("RGBA")
            pixels = np.array(image.convert("RGB"))  # asarray() would be read-only
        return _upright(pixels, orientation)


def read_label_image(path: str | Path) -> npt.NDArray[np.integer[Any]]:
    """Read instance ids or class values ``[H, W]`` exactly as stored.

    Gray of 1, 2, 4, 8, 16 or 32 bits keeps its values, a palette image gives indices, not colours;
    colour images pass where their three channels are equal. EXIF orientation is applied.

    Raises:
        ImageError: as `read_image`; also for colour, floating-point and JPEG images.
    """
    with _opened(path) as (file, image):
        if image.format in _LOSSY_FORMATS:
            raise ImageError(path, "JPEG does not keep label values; save the labels as PNG")
        if image.mode == "F":
            raise ImageError(path, "has floating-point pixels; save the labels as 16-bit PNG")
        orientation = _orientation(file, image)
        bits = _bits(file, image)
        pixels = _decode_16_bits(path, file, image) if bits == 16 else _stored_values(image, bits)
        if pixels.ndim == 3:
            if (pixels[..., :3] != pixels[..., :1]).any():
                raise ImageError(
                    path,
                    f"is a colour image ({image.mode}) where each pixel should be one id; save "
                    "it as gray or palette PNG whose values are the ids",
                )
            pixels = pixels[..., 0]
        return _upright(pixels, orientation)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[IO[bytes], Image.Image]]:
    """The file and its header, with the size checked; decoders' errors become `ImageError`."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    path, f"{width} x {height} pixels is more than {MAX_PIXELS}; cut it into tiles"
                )
            yield file, image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(path, "there is no such file") from error
    except _DECODER_ERRORS as error:
        raise ImageError(path, f"cannot be read as an image ({error})") from error


def _decode_opencv(path: str | Path, file: IO[bytes], image: Image.Image) -> npt.NDArray[Any]:
    data = _peek(file, 0)
    # OpenCV 4 fills the missing part of a JPEG with gray and says so on stderr only.
    if image.format != "PNG" and not _jpeg_is_complete(data):
        raise ImageError(path, "the file is cut short")
    return _imdecode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_16_bits(
    path: str | Path, file: IO[bytes], image: Image.Image
) -> npt.NDArray[np.uint16]:
    """Gray ``[H, W]``, or PNG colour ``[H, W, C]`` in OpenCV's order, as stored."""
    if image.format == "PNG":
        return _imdecode(path, _peek(file, 0), cv2.IMREAD_UNCHANGED)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    raise ImageError(path, f"16-bit {image.mode} {image.format} is not read; save it as PNG")


def _imdecode(path: str | Path, data: bytes, flags: int) -> npt.NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ImageError(path, "the file is damaged or cut short")
    return pixels


def _peek(file: IO[bytes], start: int, count: int = -1) -> bytes:
    """Bytes from ``start``; the position stays, since Pillow shares the file."""
    position = file.tell()
    file.seek(start)
    data = file.read(count)
    file.seek(position)
    return data


def _stored_values(image: Image.Image, bits: int) -> npt.NDArray[Any]:
    """Pillow's pixels with the values of the file, without an alpha beside gray or indices."""
    pixels = np.array(image)
    if image.mode in ("LA", "PA"):
        return pixels[..., 0]
    if image.mode == "1":
        return pixels.astype(np.uint8)
    if image.mode == "L" and bits < 8:  # Pillow spreads 2 and 4 bits over 0..255
        return pixels // (255 // (2**bits - 1))
    return pixels


def _to_8_bits(pixels: npt.NDArray[np.uint16], how: str) -> npt.NDArray[np.uint8]:
    if how == "scale":
        return (pixels >> 8).astype(np.uint8)
    low, high = int(pixels.min()), int(pixels.max())
    return ((pixels - low) * (255.0 / max(high - low, 1)) + 0.5).astype(np.uint8)


def _as_rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """OpenCV's gray, BGR or BGRA as RGB."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(pixels, code).astype(np.uint8, copy=False)


def _upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undo an EXIF orientation, 1 to 8."""
    if orientation in (2, 4, 5, 7):  # the mirrored ones: left becomes right first
        pixels = pixels[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)  # counter-clockwise quarters
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _orientation(file: IO[bytes], image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it is not valid."""
    if image.format == "TIFF":  # Pillow turns it itself, and its header has the upright size
        return 1
    try:
        if image.format == "PNG" and "exif" not in image.info:
            late = _png_chunk(file, b"eXIf")
            if late is not None:
                image.info["exif"] = late
        # Not image.getexif(): for PNG that would decode the whole picture.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_chunk(file: IO[bytes], kind: bytes) -> bytes | None:
    """The first chunk of a kind; a walk over the headers, since it may come after the pixels."""
    position = 8
    while len(header := _peek(file, position, 8)) == 8:
        length = int.from_bytes(header[:4], "big")
        if header[4:] == kind:
            return _peek(file, position + 8, min(length, 2**16))
        position += length + 12
    return None


def _bits(file: IO[bytes], image: Image.Image) -> int:
    """Bits of one channel as stored: Pillow's mode hides them for 16-bit colour and 4-bit gray."""
    if image.format == "PNG":
        return _peek(file, 24, 1)[0]
    if image.format == "TIFF":
        stored = getattr(image, "tag_v2", {}).get(258, 1)
        return max(stored) if isinstance(stored, tuple) else int(stored)
    return 16 if image.mode.startswith("I;16") else 8


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether the first picture has its end marker.

    Segments before the first scan are stepped over, since a thumbnail in them has markers of its
    own; inside scans a data byte 0xFF is always followed by 0x00 (ITU-T T.81, B.1.1.5).
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
