"""Small files that would take all memory, all time, or other files, if a reader believed them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from . import corpus
from .runner import examine
from .targets import TARGETS


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in (*chunks, (b"IEND", b"")):
        body += struct.pack(">I", len(data)) + kind + data
        body += struct.pack(">I", zlib.crc32(kind + data))
    return body


def _header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def _zeros(megabytes: int) -> bytes:
    """Deflated."""
    deflate = zlib.compressobj(9)
    million = bytes(1_000_000)
    return b"".join(deflate.compress(million) for _ in range(megabytes)) + deflate.flush()


def _coco(segmentation: object, width: int = 60, height: int = 40) -> bytes:
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 9}
    annotation |= {"iscrowd": 0, "segmentation": segmentation}
    category = {"id": 1, "name": "x"}
    return json.dumps(
        {"images": [image], "annotations": [annotation], "categories": [category]}
    ).encode()


def _bombs() -> Iterator[tuple[str, str, bytes]]:
    """(reader, in words, input), each of which is to be refused."""
    for name in ("config", "stored config", "YOLO names"):
        yield name, "billion laughs", corpus.text("config", "laughs.yaml")
        yield name, "a billion merged keys", corpus.text("config", "merges.yaml")
        yield name, "100,000 levels", b"[" * 100_000
    yield "VOC", "billion laughs", corpus.text("voc", "laughs.xml")
    yield "VOC", "external entity", corpus.text("voc", "external.xml")
    for kind, data in corpus.huge_images():
        name = {"png": "PNG", "tiff": "TIFF"}.get(kind, "other images")
        yield name, f"{kind} header of a huge picture", data
    yield "PNG", "chunk that claims 4 GB", corpus.pngs()[0][:33] + b"\xff\0\0\0IDAT" + bytes(50)
    yield "PNG", "100 million pixels of no bytes", _png(_header(10_000, 10_000), (b"IDAT", b""))
    yield "TIFF", "pages in a loop", corpus.looping_tiff()
    yield "COCO", "100,000 levels", b'{"images":' + b"[" * 100_000
    for name in ("results", "ground truth"):
        yield name, "100,000 levels", b"[" * 100_000
    code = {"size": [65536, 32768], "counts": [2**31]}
    result = {"image_id": 1, "category_id": 4, "score": 1, "bbox": [0, 0, 9, 9]}
    yield "results", "RLE of 2^31 pixels", json.dumps([result | {"segmentation": code}]).encode()
    yield "ground truth", "RLE of 2^31 pixels", _coco(code, 32768, 65536)
    height, width = corpus.HUGE
    whole = {"size": [height, width], "counts": [0, height * width]}
    corners = {"size": [height, width], "counts": [0, 1, height * width - 2, 1]}
    polygon = [[0, 0, width, 0, width, height]]
    for words, mask in (("every pixel", whole), ("two corners", corners)):
        yield "boundaries", f"{words} of 2^31", _masks(mask, mask)
    yield "boundaries", "polygon over 2^31 pixels", _masks(polygon, whole)
    column = {"size": [height, width], "counts": [0, height, height * (width - 1)]}
    yield "boundaries", "detection of 2^31 pixels", _masks(column, whole)
    yield "run lengths", "RLE of 2^31 pixels", b"[2147483648]"
    yield "run lengths", "100,000 runs of 2^31 pixels", b"P000002" * 100_000
    for name in ("checkpoint", "weights"):
        yield name, "header of 2^63 bytes", struct.pack("<Q", 2**63) + b"{}"
        yield name, "tensor of 2^62 bytes", _safetensors([2**31, 2**31], [0, 2**62])
        yield name, "tensor past the file's end", _safetensors([2**28], [0, 2**28])
    yield "torch file", "command in a pickle", corpus.torch_files()[-1]


def _masks(truth: object, found: object) -> bytes:
    return json.dumps({"truth": truth, "found": found}).encode()


def _safetensors(shape: list[int], offsets: list[int]) -> bytes:
    header = {"x": {"dtype": "U8", "shape": shape, "data_offsets": offsets}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


BOMBS = list(_bombs())


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in BOMBS))
def test_bombs_are_refused(name: str) -> None:
    """Each with a documented error, in time, with less than 200 MB, touching nothing else."""
    inputs = [(i, data) for i, (reader, _, data) in enumerate(BOMBS) if reader == name]
    report = examine(replace(TARGETS[name], megabytes=200), inputs)
    found = [(BOMBS[number][1], problem) for number, _, problem in report.failures]
    assert found == []
    assert report.refused == report.inputs == len(inputs)


def test_bombs_within_what_is_read() -> None:
    """Metadata and surplus pixels that inflate to 100 MB, and masks that claim huge images."""
    zeros = _zeros(100)
    pixels = b"IDAT", zlib.compress(bytes(6 * 25))
    images = [
        _png(_header(8, 6), (b"iCCP", b"p\0\0" + zeros), pixels),
        _png(_header(8, 6), (b"zTXt", b"p\0\0" + zeros), pixels),
        _png(_header(8, 6), (b"IDAT", zeros)),
    ]
    report = examine(replace(TARGETS["PNG"], megabytes=60), enumerate(images))
    assert report.failures == []
    assert report.inputs == 3
    sets = [
        _coco({"size": [65536, 32768], "counts": [2**31]}, 32768, 65536),
        _coco({"size": [40, 60], "counts": [2**31]}),
        _coco([[0, 0, 1e9, 0, 1e9, 1e9]]),
    ]
    report = examine(TARGETS["COCO"], enumerate(sets))
    assert report.failures == []
    assert report.inputs == 3


def test_boundaries_of_the_largest_masks() -> None:
    """Of 2^27 pixels: they are made, in bounded memory and time."""
    height, width = corpus.HUGE
    largest = {"size": [height, width], "counts": [0, 2**27, height * width - 2**27]}
    report = examine(TARGETS["boundaries"], [(0, _masks(largest, largest))])
    assert report.failures == []
    assert (report.inputs, report.refused) == (1, 0)
