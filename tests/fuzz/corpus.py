"""What all inputs are made from: text files beside this one, and small files made here."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save
from torch import nn

from instseg.data.columns import write_columns
from instseg.data.shards.index import build_index, save_index
from tests.engine.tiny import TinyLoader, make_options, make_trainer

FOLDER = Path(__file__).parent / "corpus"


def texts(kind: str) -> list[bytes]:
    """The files of one folder of the corpus."""
    return [path.read_bytes() for path in sorted((FOLDER / kind).iterdir())]


def text(kind: str, name: str) -> bytes:
    """One file of the corpus."""
    return (FOLDER / kind / name).read_bytes()


def picture(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    """``uint8 [H, W, C]`` of noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of a format that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pngs() -> list[bytes]:
    """Gray, 16 bits, colour, palette with transparency, alpha; text, profile and EXIF chunks."""
    small = Image.fromarray(picture(6, 8))
    turned = Image.Exif()
    turned[0x0112] = 6
    gray = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    return [
        saved(small, "PNG", icc_profile=b"profile" * 20, exif=turned),
        saved(small.convert("L"), "PNG"),
        saved(small.convert("1"), "PNG"),
        saved(small.convert("P"), "PNG", transparency=3),
        saved(small.convert("RGBA"), "PNG", pnginfo=_text_chunks()),
        saved(Image.fromarray(gray), "PNG"),
    ]


def other_images() -> list[bytes]:
    """JPEG of several kinds, GIF of two frames, BMP, WebP, PPM."""
    small = Image.fromarray(picture(6, 8))
    turned = Image.Exif()
    turned[0x0112] = 8
    frame = small.convert("P")
    return [
        saved(small, "JPEG", exif=turned),
        saved(small, "JPEG", progressive=True),
        saved(small.convert("L"), "JPEG"),
        saved(small.convert("CMYK"), "JPEG"),
        saved(frame, "GIF", save_all=True, append_images=[frame.rotate(180)]),
        saved(small, "BMP"),
        saved(small, "WEBP", lossless=True),
        saved(small, "PPM"),
    ]


def tiffs() -> list[bytes]:
    """Striped, tiled, deflated, of several pages, samples and bits; BigTIFF."""
    small = picture(6, 8)
    return [
        saved(Image.fromarray(small), "TIFF"),
        saved(Image.fromarray(small), "TIFF", compression="tiff_lzw"),
        saved(Image.fromarray(small[..., 0]), "TIFF", compression="tiff_adobe_deflate"),
        _tiff(np.zeros((3, 6, 8), np.uint16), photometric="minisblack"),
        _tiff(picture(6, 8, 5), photometric="minisblack", planarconfig="contig"),
        _tiff(picture(32, 32, 4), photometric="rgb", tile=(16, 16), compression="zlib"),
        _tiff(np.zeros((6, 8), np.uint8), bigtiff=True, photometric="minisblack"),
    ]


@cache
def checkpoints() -> list[bytes]:
    """What a small training leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        options = make_options(epochs=1, eval_every=1, checkpoint_every=1)
        make_trainer(Path(folder), options=options, loader=TinyLoader(images=4)).run()
        return [Path(folder, "last.safetensors").read_bytes()]


def weights() -> list[bytes]:
    """Weights that carry a description, and bare ones."""
    about = {"inference": "model: {name: mask_rcnn}\n", "categories": [{"id": 1, "name": "x"}]}
    tensors = dict(nn.Linear(3, 2).state_dict())
    return [save(tensors, {"instseg": json.dumps(about)}), save(tensors)]


def torch_files() -> list[bytes]:
    """Of both formats of torch, and pickles that would run code."""
    tensors = dict(nn.Linear(3, 2).state_dict())
    files = []
    for zipped in (True, False):
        for content in (tensors, {"model": tensors, "epoch": 3}):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            files.append(file.getvalue())
    return [*files, pickle.dumps(_Runs()), pickle.dumps({"model": _Runs()})]


class _Runs:
    """Pickled, it is a command that whoever unpickles it runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').system('touch pwned')",)


def shards() -> list[bytes]:
    """A tar of two images with their records, with plain and with extended headers."""
    record = {"id": 1, "file_name": "a.png", "width": 8, "height": 6}
    note = json.dumps({"image": record, "annotations": [{"id": 1, "image_id": 1}]}).encode()
    files = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for key in ("a", "b" * 40 + "/" + "c" * 70):
                for name, content in ((f"{key}.png", pngs()[0]), (f"{key}.json", note)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        files.append(file.getvalue())
    return files


def shard_indices() -> list[bytes]:
    """What is kept beside the first shard."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index")
        save_index(build_index(io.BytesIO(shards()[0]), "shard.tar"), path)
        return [path.read_bytes()]


def columns() -> list[bytes]:
    """The file of a data set's index."""
    file = io.BytesIO()
    write_columns(file, {"a": np.arange(9), "b": np.ones((2, 3))}, {"source": "a.json"})
    return [file.getvalue()]


def run_lengths() -> list[bytes]:
    """Counts as compressed strings and as JSON lists, sound ones and hostile ones."""
    return [
        b"X1X1`X2", b"0X1hY2", b"", b"0", b"o" * 600, b"P" * 8, b"\xff\x00", b"oooooo0" * 9,
        b"[0, 40, 2360]", b"[2400]", b"[2147483648]", b"[4294967296, -4294964896]", b"[-1, 2401]",
    ]  # fmt: skip


HUGE = (65536, 32767)
"""(height, width) of an image of little less than 2^31 pixels, of which no annotation is a lie."""


def boundaries() -> list[bytes]:
    """Masks of an object and of its detection on an image of `HUGE` size: all that is believed."""
    rest = HUGE[0] * HUGE[1] - 4 * HUGE[0]
    disc = {"size": HUGE, "counts": [3 * HUGE[0] + 5, 40, HUGE[0] - 40, 40, rest - 45]}
    columns = {"size": HUGE, "counts": [HUGE[0], 3 * HUGE[0], rest]}
    square = [[10, 10, 300, 10, 300, 300, 10, 300]]
    pairs = [(disc, disc), (square, disc), (columns, columns)]
    return [json.dumps({"truth": truth, "found": found}).encode() for truth, found in pairs]


def huge_images() -> Iterator[tuple[str, bytes]]:
    """Headers of far larger pictures than memory, by format; nothing, or little, follows them."""
    side = 100_000
    header = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 2, 0, 0, 0)
    yield "png", _chunk_file(pngs()[0], header)
    jpeg = bytearray(other_images()[0])
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    yield "jpeg", bytes(jpeg)
    gif = bytearray(other_images()[4])
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "gif", bytes(gif)
    bmp = bytearray(other_images()[5])
    bmp[18:26] = struct.pack("<ii", side, side)
    yield "bmp", bytes(bmp)
    yield "ppm", b"P6 100000 100000 255\n" + bytes(100)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, np.zeros((6, 8), np.uint8), photometric="minisblack")
    for tag, old in ((256, 8), (257, 6)):
        field = struct.pack("<HHI", tag, 4, 1)
        entry, short = field + struct.pack("<I", old), struct.pack("<HHI", tag, 3, 1)
        entry = entry if entry in tiff.getvalue() else short + struct.pack("<I", old)
        changed = tiff.getvalue().replace(entry, field + struct.pack("<I", side))
        assert changed != tiff.getvalue()
        tiff = io.BytesIO(changed)
    yield "tiff", tiff.getvalue()


def _chunk_file(png: bytes, header: bytes) -> bytes:
    start = 8 + 4 + len(header) + 4
    checksum = struct.pack(">I", zlib.crc32(header))
    return png[:8] + struct.pack(">I", len(header) - 4) + header + checksum + png[start:]


def _text_chunks() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "text")
    info.add_text("b", "compressed " * 20, zip=True)
    return info


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def looping_tiff(*, bigtiff: bool = False) -> bytes:
    """A TIFF of 150 pages, of which the last names the first as the next.

    tifffile itself notices loops of up to 100 pages, when it counts them.
    """
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=bigtiff) as writer:
        for _ in range(150):
            writer.write(picture(6, 8), photometric="rgb", contiguous=False)
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as pages:
        first, *_, last = (page.offset for page in pages.pages)
    number, entry, offset = (8, 20, 8) if bigtiff else (2, 12, 4)
    place = last + number + entry * int.from_bytes(data[last : last + number], "little")
    data[place : place + offset] = first.to_bytes(offset, "little")
    return bytes(data)
