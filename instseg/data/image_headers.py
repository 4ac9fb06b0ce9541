"""What an image file says of itself before its pixels are decoded."""

from __future__ import annotations

import struct
import zlib
from typing import IO

import cv2
from PIL import Image

_ORIENTATION = 0x0112

# What the decoders raise on damaged files, found by feeding them damaged files.
DECODER_ERRORS = (
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


def peek(file: IO[bytes], start: int, count: int = -1) -> bytes:
    """Bytes from ``start``; the position stays, since Pillow shares the file."""
    position = file.tell()
    file.seek(start)
    data = file.read(count)
    file.seek(position)
    return data


def exif_orientation(file: IO[bytes], image: Image.Image) -> int:
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
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_chunk(file: IO[bytes], kind: bytes) -> bytes | None:
    """The first chunk of a kind; a walk over the headers, since it may come after the pixels."""
    position = 8
    while len(header := peek(file, position, 8)) == 8:
        length = int.from_bytes(header[:4], "big")
        if header[4:] == kind:
            return peek(file, position + 8, min(length, 2**16))
        position += length + 12
    return None


def stored_bits(file: IO[bytes], image: Image.Image) -> int:
    """Bits of one channel as stored: Pillow's mode hides them for 16-bit colour and 4-bit gray."""
    if image.format == "PNG":
        return peek(file, 24, 1)[0]
    if image.format == "TIFF":
        stored = getattr(image, "tag_v2", {}).get(258, 1)
        return max(stored) if isinstance(stored, tuple) else int(stored)
    return 16 if image.mode.startswith("I;16") else 8


def jpeg_is_complete(data: bytes) -> bool:
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
