"""Images of any number of channels, of 16 bits, and the pages of TIFF stacks."""

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from instseg.data import image_io
from instseg.data.image_io import (
    ImageError,
    count_pages,
    image_size,
    read_image,
    read_label_colours,
    read_label_image,
)
from instseg.data.tiff import page_name, split_page
from tests.data.test_image_io import PALETTE, chunk, exif, plte, png, write

H, W = 6, 8
RNG = np.random.default_rng(1)
GRAY = RNG.integers(0, 256, (H, W), dtype=np.uint8)
RGB = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (H, W, 4), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (H, W)).astype(np.uint16)
RGB16 = RNG.integers(0, 65536, (H, W, 3)).astype(np.uint16)
RGBA16 = RNG.integers(0, 65536, (H, W, 4)).astype(np.uint16)


def planes(count: int, dtype: str = "uint8") -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (count, H, W)).astype(dtype)


def equal(image: np.ndarray, expected: np.ndarray) -> None:
    assert image.dtype == expected.dtype
    assert image.flags["C_CONTIGUOUS"]
    assert image.flags["WRITEABLE"]
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(GRAY, 8, 0), GRAY),
        (png(np.dstack([GRAY] * 3), 8, 2), GRAY),
        (png(np.dstack([GRAY, RGBA[..., 3]]), 8, 4), GRAY),
        (png(GRAY % 2, 1, 0), GRAY % 2 * 255),
        (png(GRAY16, 16, 0), (GRAY16 >> 8).astype(np.uint8)),
    ],
)
def test_one_channel_of_gray(tmp_path: Path, data: bytes, expected: np.ndarray) -> None:
    path = write(tmp_path / "a.png", data)
    equal(read_image(path, channels=1), expected[..., None])


def test_one_channel_of_colour_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(RGB, 8, 2))
    with pytest.raises(ImageError, match=r"a\.png: is a colour image.*set it to 3"):
        read_image(path, channels=1)
    # Gray but for the alpha, which is no colour.
    alpha = write(tmp_path / "b.png", png(np.dstack([GRAY, GRAY, GRAY, RGBA[..., 3]]), 8, 6))
    equal(read_image(alpha, channels=1), GRAY[..., None])


def test_four_channels_are_rgb_and_alpha(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(RGBA, 8, 6))
    equal(read_image(path, channels=4), RGBA)
    equal(read_image(path), RGBA[..., :3])
    palette = png(GRAY, 8, 3, plte(256) + chunk(b"tRNS", bytes(range(256))))
    colours = np.dstack([PALETTE[GRAY], GRAY])
    equal(read_image(write(tmp_path / "p.png", palette), channels=4), colours)
    deep = write(tmp_path / "deep.png", png(RGBA16, 16, 6))
    equal(read_image(deep, channels=4, bits16="keep"), RGBA16)
    equal(read_image(deep, channels=4), (RGBA16 >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "channels", "found", "valid"),
    [
        (png(GRAY, 8, 0), 4, "1 channel", "1 or 3"),
        (png(GRAY, 8, 0), 5, "1 channel", "1 or 3"),
        (png(RGB, 8, 2), 4, "3 channels", "3"),
        (png(RGB, 8, 2), 2, "3 channels", "3"),
        (png(RGBA, 8, 6), 5, "3 channels and alpha", "3 or 4"),
        (png(RGB16, 16, 2), 4, "3 channels", "3"),
    ],
)
def test_another_number_of_channels(
    tmp_path: Path, data: bytes, channels: int, found: str, valid: str
) -> None:
    path = write(tmp_path / "a.png", data)
    text = rf"a\.png: has {found}, but model\.image_channels is {channels}; set it to {valid}$"
    with pytest.raises(ImageError, match=text):
        read_image(path, channels=channels)


def test_channels_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        read_image(write(tmp_path / "a.png", png(GRAY, 8, 0)), channels=0)


def test_16_bits_are_kept(tmp_path: Path) -> None:
    gray = write(tmp_path / "gray.png", png(GRAY16, 16, 0))
    equal(read_image(gray, channels=1, bits16="keep"), GRAY16[..., None])
    equal(read_image(gray, bits16="keep"), np.dstack([GRAY16] * 3))
    colour = write(tmp_path / "rgb.png", png(RGB16, 16, 2))
    equal(read_image(colour, bits16="keep"), RGB16)
    eight = write(tmp_path / "eight.png", png(RGB, 8, 2))
    equal(read_image(eight, bits16="keep"), RGB)
    tifffile.imwrite(tmp_path / "rgb.tif", RGB16, photometric="rgb", compression="zlib")
    equal(read_image(tmp_path / "rgb.tif", bits16="keep"), RGB16)
    equal(read_image(tmp_path / "rgb.tif"), (RGB16 >> 8).astype(np.uint8))
    low, high = RGB16.min(), RGB16.max()
    stretched = np.floor((RGB16 - float(low)) * 255 / (float(high) - low) + 0.5).astype(np.uint8)
    equal(read_image(tmp_path / "rgb.tif", bits16="stretch"), stretched)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 4},
        {"compression": "zlib", "tile": (16, 16)},
        {"bigtiff": True, "rowsperstrip": 1},
    ],
    ids=["plain", "deflate", "predictor", "tiles", "strips"],
)
@pytest.mark.parametrize("separate", [False, True])
def test_samples_of_a_tiff_are_channels(
    tmp_path: Path, dtype: str, byteorder: str, options: dict, separate: bool
) -> None:
    stored = planes(5, dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored if separate else np.ascontiguousarray(np.moveaxis(stored, 0, 2)),
        photometric="minisblack",
        planarconfig="separate" if separate else "contig",
        byteorder=byteorder,
        **options,
    )
    equal(read_image(tmp_path / "a.tif", channels=5, bits16="keep"), np.moveaxis(stored, 0, 2))
    assert image_size(tmp_path / "a.tif") == (H, W)
    text = r"a\.tif: has 5 channels, but model\.image_channels is 3; set it to 5$"
    with pytest.raises(ImageError, match=text):
        read_image(tmp_path / "a.tif")


def test_colour_tiff_with_alpha_and_more(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGBA, photometric="rgb")
    equal(read_image(tmp_path / "a.tif"), RGBA[..., :3])
    equal(read_image(tmp_path / "a.tif", channels=4), RGBA)
    tifffile.imwrite(tmp_path / "b.tif", RGBA16, photometric="rgb")
    equal(read_image(tmp_path / "b.tif", bits16="keep"), RGBA16[..., :3])
    equal(read_image(tmp_path / "b.tif", channels=4, bits16="keep"), RGBA16)
    six = np.dstack([RGB, RGB[::-1]])  # Pillow would leave out the last three
    tifffile.imwrite(tmp_path / "c.tif", six, photometric="rgb")
    equal(read_image(tmp_path / "c.tif", channels=6), six)
    with pytest.raises(ImageError, match=r"c\.tif: has 6 channels, but model\.image_channels is 3"):
        read_image(tmp_path / "c.tif")


def test_two_channels_are_no_gray_and_alpha_unless_they_say_so(tmp_path: Path) -> None:
    two = RGBA[..., :2].copy()
    tifffile.imwrite(tmp_path / "two.tif", two, photometric="minisblack", planarconfig="contig")
    equal(read_image(tmp_path / "two.tif", channels=2), two)
    with pytest.raises(ImageError, match=r"has 2 channels, but model\.image_channels is 1"):
        read_image(tmp_path / "two.tif", channels=1)
    Image.fromarray(two, "LA").save(tmp_path / "la.tif")
    equal(read_image(tmp_path / "la.tif", channels=1), two[..., :1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_many_samples(tmp_path: Path, orientation: int) -> None:
    five = np.ascontiguousarray(np.moveaxis(planes(5), 0, 2))
    tifffile.imwrite(
        tmp_path / "a.tif",
        five,
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(274, "H", 1, orientation, True)],
    )
    Image.fromarray(five[..., :3]).save(tmp_path / "rgb.tif", exif=exif(orientation))
    image = read_image(tmp_path / "a.tif", channels=5)
    equal(image[..., :3].copy(), read_image(tmp_path / "rgb.tif"))
    assert image_size(tmp_path / "a.tif") == image.shape[:2]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_pages_are_channels_or_images(tmp_path: Path, dtype: str, compression: str) -> None:
    stored = planes(4, dtype)
    first, *others = (Image.fromarray(page) for page in stored)
    path = tmp_path / "s.tif"
    first.save(path, save_all=True, append_images=others, compression=compression)
    assert count_pages(path) == 4
    assert image_size(path) == (H, W)
    equal(read_image(path, channels=4, bits16="keep"), np.moveaxis(stored, 0, 2))
    for i, page in enumerate(stored):
        name = f"{path}#page={i}"
        equal(read_image(name, channels=1, bits16="keep"), page[..., None])
        equal(read_image(Path(name), bits16="keep"), np.dstack([page] * 3))
        np.testing.assert_array_equal(read_label_image(name), page)
        assert image_size(name) == (H, W)
        assert count_pages(name) == 1
    with pytest.raises(ImageError, match=r"s\.tif#page=4: has no page 4: its pages are 0 to 3"):
        read_image(f"{path}#page=4")
    for channels in (1, 3):
        text = rf"has 4 pages, but model\.image_channels is {channels}; .*#page=0, or set .* to 4"
        with pytest.raises(ImageError, match=text):
            read_image(path, channels=channels)
    with pytest.raises(ImageError, match=r"s\.tif: is a stack of 4 pages; name one, such as"):
        read_label_image(path)


def test_a_thumbnail_is_no_page(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB, photometric="rgb")
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    assert count_pages(tmp_path / "a.tif") == 1
    equal(read_image(tmp_path / "a.tif"), RGB)


def test_colour_pages_are_no_channels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(3):
            file.write(RGB, photometric="rgb")
    with pytest.raises(ImageError, match=r"has 3 pages, .* name one, such as .*a\.tif#page=0$"):
        read_image(tmp_path / "a.tif")
    equal(read_image(f"{tmp_path / 'a.tif'}#page=2"), RGB)


def test_only_tiff_has_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(RGB, 8, 2))
    for read in (read_image, image_size, read_label_image, count_pages):
        with pytest.raises(ImageError, match="only a TIFF has pages"):
            read(f"{path}#page=0")
        with pytest.raises(ImageError, match=r"none\.tif#page=0: there is no such file"):
            read(f"{tmp_path / 'none.tif'}#page=0")


def test_names_of_pages() -> None:
    assert split_page("a/s.tif#page=07") == (Path("a/s.tif"), 7)
    assert split_page("a/s.tif") == (Path("a/s.tif"), None)
    assert split_page("#page=x") == (Path("#page=x"), None)
    names = [page_name("s.tif", i, 11) for i in range(11)]
    assert names == sorted(names)
    assert (names[0], names[10]) == ("s.tif#page=00", "s.tif#page=10")
    assert page_name("s.tif", 3) == "s.tif#page=3"


def test_colours_of_labels(tmp_path: Path) -> None:
    palette = write(tmp_path / "p.png", png(GRAY, 8, 3, plte(256)))
    equal(read_label_colours(palette), PALETTE[GRAY])
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="JPEG does not keep label values"):
        read_label_colours(tmp_path / "a.jpg")


def many_samples(**options: object) -> dict:
    return {"photometric": "minisblack", "planarconfig": "contig", **options}


def test_kinds_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((H, W, 5), np.float32), **many_samples())
    with pytest.raises(ImageError, match=r"a\.tif: has float32 pixels; save it with 8 or 16 bits"):
        read_image(path, channels=5)
    tifffile.imwrite(path, np.zeros((H, W, 5), np.uint8), **many_samples(compression="lzma"))
    with pytest.raises(ImageError, match=r"a\.tif: compression LZMA .* uncompressed or with defl"):
        read_image(path, channels=5)
    volume = {"photometric": "minisblack", "tile": (16, 16, 16), "volumetric": True}
    tifffile.imwrite(path, np.zeros((16, 16, 16, 5), np.uint8), **volume, planarconfig="contig")
    with pytest.raises(ImageError, match="neither gray nor RGB"):
        read_image(path, channels=5)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"rowsperstrip": 1}])
def test_cut_and_damaged_tiff(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(planes(5), 0, 2).copy(), **many_samples(**options))
    whole = path.read_bytes()
    for cut in np.linspace(1, len(whole) - 1, 30).astype(int):
        write(path, whole[:cut])
        with pytest.raises(ImageError, match=r"a\.tif"):
            read_image(path, channels=5)
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for position in RNG.integers(0, min(len(whole), 260), 4):
            broken[position] = RNG.integers(0, 256)
        write(path, bytes(broken))
        for read in (lambda p: read_image(p, channels=5), image_size, count_pages):
            try:
                read(path)
            except ImageError:  # any other exception fails the test
                refused += 1
    assert refused > 50


def test_a_flipped_bit_in_deflated_samples_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = RNG.integers(0, 256, (60, 80, 5), dtype=np.uint8)
    tifffile.imwrite(path, pixels, **many_samples(compression="zlib"))
    whole = path.read_bytes()
    for position in np.linspace(len(whole) - 20_000, len(whole) - 10, 20).astype(int):
        broken = bytearray(whole)
        broken[position] ^= 16
        with pytest.raises(ImageError, match=r"a\.tif"):
            read_image(write(path, bytes(broken)), channels=5)


def tiff(tags: dict[int, tuple[int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of one page whose pixels start at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, (kind, v) in tags.items())
    table = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table


def page_tags(width: int, height: int, data: bytes, compression: int) -> dict:
    long, short = 4, 3
    return {
        256: (long, width), 257: (long, height), 258: (short, 8), 259: (short, compression),
        262: (short, 1), 273: (long, 8), 277: (short, 5), 278: (long, height),
        279: (long, len(data)), 284: (short, 1),
    }  # fmt: skip


def peak_of(path: Path, match: str) -> int:
    tracemalloc.start()
    with pytest.raises(ImageError, match=match):
        read_image(path, channels=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_hostile_tiff_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    zeros = zlib.compress(bytes(2**26))  # 64 KiB that inflate to 64 MiB
    write(path, tiff(page_tags(8, 6, zeros, 8), zeros))
    assert peak_of(path, r"bomb\.tif: a strip or tile is damaged or larger") < 2**22
    write(path, tiff(page_tags(11_000, 11_000, b"abc", 1), b"abc"))
    assert peak_of(path, r"bomb\.tif: the file is cut short") < 2**22
    write(path, tiff(page_tags(2**31, 2**31, b"abc", 1), b"abc"))
    assert peak_of(path, r"bomb\.tif: .* pixels is more than") < 2**22
    tiled = page_tags(8, 6, zeros, 8) | {322: (4, 2**20), 323: (4, 2**20), 324: (4, 8)}
    tiled |= {325: (4, len(zeros))}
    write(path, tiff({k: v for k, v in tiled.items() if k not in (273, 278, 279)}, zeros))
    assert peak_of(path, r"bomb\.tif: has strips or tiles of \d+ bytes") < 2**22


def test_many_channels_of_a_large_picture_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((H, W, 9), np.uint8), **many_samples())
    tifffile.imwrite(tmp_path / "b.tif", planes(9), photometric="minisblack")
    monkeypatch.setattr(image_io, "MAX_PIXELS", H * W)
    for name in ("a.tif", "b.tif"):
        with pytest.raises(ImageError, match=r"432 bytes of pixels are more than 384"):
            read_image(tmp_path / name, channels=9)


@pytest.mark.real_data
def test_real_gray_images(real_data: Path) -> None:
    paths = sorted((real_data / "isbi2012_em" / "train" / "image").glob("*.png"))[:3]
    assert len(paths) == 3
    for path in paths:
        np.testing.assert_array_equal(
            read_image(path, channels=1)[..., 0], np.asarray(Image.open(path).convert("L"))
        )
