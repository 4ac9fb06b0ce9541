"""What an image file says of itself before its pixels are decoded."""

from __future__ import annotations

import os
import struct
import zlib
from typing import IO

import cv2
from PIL import Image

from instseg.structures.geometry import Size

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
            # From the end, where it is as a rule.
            return data.rfind(b"\xff\xd9", position) >= 0
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def png_chunks_fit(data: bytes) -> bool:
    """Whether every chunk ends within the file; so it is for data of other formats.

    OpenCV takes the memory that a chunk claims before it looks for its bytes: four gigabytes for a
    file of a hundred bytes.
    """
    if not data.startswith(b"\x89PNG"):
        return True
    position, kind = 8, b""
    while position < len(data) and kind != b"IEND":
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return position <= len(data)


def holds_too_little(file: IO[bytes], image: Image.Image) -> bool:
    """Whether a PNG or JPEG is shorter than its pixels can be coded in, so that its header lies.

    Deflate makes at most 1032 bytes of one; JPEG's Huffman codes take at least a bit for each 8 x 8
    pixels of its largest component. Decoders take memory for all pixels before they miss any.
    """
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(position)
    width, height = image.size
    if image.format == "PNG":
        row = 1 + width * len(image.getbands()) * stored_bits(file, image) // 8
        return length * 1032 < height * row
    return image.format in ("JPEG", "MPO") and length * 512 < width * height


def reduced_flag(size: Size, least_size: Size) -> int:
    """OpenCV's flag for the smallest JPEG decoding with no side below ``least_size``; 0 is whole.

    Sides must be multiples: the last pixels would else lie half beyond the border, and a resize to
    a given size would stretch the image. The flags' names speak of gray because they say nothing of
    colour, which another flag asks for.
    """
    for divisor, flag in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    ):
        quotients = [divmod(side, divisor) for side in size]
        if all(q >= n and not rest for (q, rest), n in zip(quotients, least_size, strict=True)):
            return flag
    return 0
