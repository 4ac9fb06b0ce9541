"""Every kind of image file, generated from known pixels, and what damaged ones do."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from instseg.data import image_io
from instseg.data.image_io import ImageError, image_size, read_image, read_label_image

H, W = 6, 8
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (H, W), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (H, W), dtype=np.uint8)
RGB = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (H, W)).astype(np.uint16)
RGB16 = RNG.integers(0, 65536, (H, W, 3)).astype(np.uint16)
ORIENTATION = 0x0112


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    pixels: np.ndarray, depth: int, colour: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG written from the specification, for the kinds that no library writes."""
    height, width = pixels.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    elif depth == 8:
        rows = [row.tobytes() for row in pixels]
    else:
        bits = (pixels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
            before,
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            after,
            chunk(b"IEND", b""),
        ]
    )


def plte(count: int) -> bytes:
    return chunk(b"PLTE", PALETTE[:count].tobytes())


def three(gray: np.ndarray) -> np.ndarray:
    return np.dstack([gray] * 3)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def saved(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


G1, G2, G4 = (RNG.integers(0, 2**depth, (H, W), dtype=np.uint8) for depth in (1, 2, 4))
TRANSPARENT = chunk(b"tRNS", bytes(range(256)))
PNGS = {
    "gray": (png(GRAY, 8, 0), three(GRAY)),
    "gray with a transparent value": (
        png(GRAY, 8, 0, chunk(b"tRNS", struct.pack(">H", int(GRAY[0, 0])))),
        three(GRAY),
    ),
    "1 bit": (png(G1, 1, 0), three(G1 * 255)),
    "2 bits": (png(G2, 2, 0), three(G2 * 85)),
    "4 bits": (png(G4, 4, 0), three(G4 * 17)),
    "rgb": (png(RGB, 8, 2), RGB),
    "rgba": (png(np.dstack([RGB, ALPHA]), 8, 6), RGB),
    "gray and alpha": (png(np.dstack([GRAY, ALPHA]), 8, 4), three(GRAY)),
    "palette": (png(GRAY, 8, 3, plte(256)), PALETTE[GRAY]),
    "palette with alpha": (png(GRAY, 8, 3, plte(256) + TRANSPARENT), PALETTE[GRAY]),
    "4-bit palette": (png(G4, 4, 3, plte(16)), PALETTE[G4]),
    "16-bit gray": (png(GRAY16, 16, 0), three(GRAY16 // 256)),
    "16-bit rgb": (png(RGB16, 16, 2), RGB16 // 256),
    "16-bit rgba": (png(np.dstack([RGB16, GRAY16]), 16, 6), RGB16 // 256),
    "16-bit gray and alpha": (png(np.dstack([GRAY16, GRAY16.T.reshape(H, W)]), 16, 4),
                              three(GRAY16 // 256)),
}  # fmt: skip


@pytest.mark.parametrize("kind", PNGS)
def test_png_kinds_give_their_pixels(tmp_path: Path, kind: str) -> None:
    data, expected = PNGS[kind]
    path = write(tmp_path / "a.png", data)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert image.flags["WRITEABLE"]
    np.testing.assert_array_equal(image, expected)
    assert image_size(path) == (H, W)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
)
def test_lossless_formats_give_their_pixels(tmp_path: Path, kind: str, options: dict) -> None:
    image = read_image(write(tmp_path / "a", saved(RGB, kind, **options)))
    np.testing.assert_array_equal(image, RGB)
    assert image.flags["WRITEABLE"]  # torch.from_numpy warns about any other


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_palettes_of_other_formats_give_colours(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(GRAY % 4).convert("P")
    image.putpalette(PALETTE.tobytes())
    image.save(tmp_path / "a", kind)
    np.testing.assert_array_equal(read_image(tmp_path / "a"), PALETTE[GRAY % 4])


def test_transparent_gif_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(GRAY % 4).convert("P")
    image.putpalette(PALETTE.tobytes())
    image.save(tmp_path / "a.gif", transparency=2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), PALETTE[GRAY % 4])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_agrees_with_pillow(tmp_path: Path, mode: str, progressive: bool) -> None:
    smooth = cv2.resize(RGB, (80, 60), interpolation=cv2.INTER_CUBIC)
    data = saved(smooth, "JPEG", mode, quality=95, progressive=progressive)
    image = read_image(write(tmp_path / "a.jpg", data))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(image.astype(int) - expected).max() <= 2
    assert np.abs(image.astype(int) - expected).mean() < 0.1


def test_16_bit_tiff(tmp_path: Path) -> None:
    Image.fromarray(GRAY16).save(tmp_path / "gray.tif", exif=exif(6))
    upright = np.rot90(GRAY16, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "gray.tif"), three(upright // 256))
    np.testing.assert_array_equal(read_label_image(tmp_path / "gray.tif"), upright)
    cv2.imwrite(str(tmp_path / "rgb.tif"), RGB16[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.tif"), RGB16 // 256)
    with pytest.raises(ImageError, match=r"rgb\.tif: compression LZW .* save it uncompressed or"):
        read_image(tmp_path / "rgb.tif", bits16="stretch")
    with pytest.raises(ImageError, match="save it as PNG"):
        read_label_image(tmp_path / "rgb.tif")


def test_stretch_uses_the_whole_range(tmp_path: Path) -> None:
    values = np.array([[1000, 1500, 2000], [3000, 5000, 1000]], dtype=np.uint16)
    path = write(tmp_path / "a.png", png(values, 16, 0))
    expected = np.round((values.astype(float) - 1000) * 255 / 4000).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path, bits16="stretch"), three(expected))
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bits16="stretch"), three(expected))
    flat = write(tmp_path / "flat.png", png(np.full((2, 2), 700, np.uint16), 16, 0))
    assert read_image(flat, bits16="stretch").max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_turns_the_image(tmp_path: Path, kind: str, orientation: int) -> None:
    smooth = cv2.resize(RGB, (40, 24), interpolation=cv2.INTER_CUBIC)
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path / "a", saved(smooth, kind, exif=exif(orientation), **options))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    image = read_image(path)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 2
    assert image_size(path) == image.shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_orientation_before_or_after_the_pixels(tmp_path: Path, late: bool, depth: int) -> None:
    block = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    place = {"after": block} if late else {"before": block}
    pixels = RGB if depth == 8 else RGB16
    path = write(tmp_path / "a.png", png(pixels, depth, 2, **place))
    expected = RGB if depth == 8 else RGB16 // 256
    # Orientation 6: shown after a quarter turn clockwise, so the left column becomes the top row.
    np.testing.assert_array_equal(read_image(path)[0], expected[::-1, 0])
    assert image_size(path) == (W, H)


def test_broken_exif_counts_as_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(RGB, 8, 2, chunk(b"eXIf", b"nonsense")))
    np.testing.assert_array_equal(read_image(path), RGB)
    data = saved(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert image_size(write(tmp_path / "a.jpg", data)) == (H, W)
    beyond = saved(RGB, "PNG", exif=exif(9))
    np.testing.assert_array_equal(read_image(write(tmp_path / "b.png", beyond)), RGB)


NOISE = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
CUT = {
    "jpeg": saved(NOISE, "JPEG"),
    "progressive": saved(NOISE, "JPEG", progressive=True),
    "gray jpeg": saved(NOISE, "JPEG", "L"),
    "cmyk jpeg": saved(NOISE, "JPEG", "CMYK"),
    "png": saved(NOISE, "PNG"),
    "16-bit png": png(np.tile(RGB16, (8, 8, 1)), 16, 2),
    "bmp": saved(NOISE, "BMP"),
    "tiff": saved(NOISE, "TIFF"),
    "webp": saved(NOISE, "WEBP"),
}


@pytest.mark.parametrize("kind", CUT)
def test_file_cut_short_is_an_error(tmp_path: Path, kind: str) -> None:
    data = CUT[kind]
    path = tmp_path / f"{kind}.img"
    for cut in [*np.linspace(1, len(data) - 60, 40).astype(int).tolist()]:
        write(path, data[:cut])
        with pytest.raises(ImageError, match=f"{kind}.img") as caught:
            read_image(path)
        assert caught.value.path == path


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "gray jpeg"])
def test_cut_jpeg_is_found_without_help_from_opencv(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenCV 4 returns a picture whose missing part is gray.
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((60, 80, 3), 128, np.uint8))
    thumbnail = CUT["jpeg"]  # has markers of its own, ahead of the picture's
    app = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Thumb\0" + thumbnail
    data = b"\xff\xd8\xff" + app + CUT[kind][2:]  # with a fill byte
    read_image(write(tmp_path / "whole.jpg", data))
    read_image(write(tmp_path / "trailer.jpg", data + b"a movie \xff\xda and more"))
    for cut in (len(data) - 1, len(data) - 50, len(app) + len(CUT[kind]) // 2):
        with pytest.raises(ImageError, match="cut short"):
            read_image(write(tmp_path / "cut.jpg", data[:cut]))


def test_flipped_bits_in_png_pixels_are_found(tmp_path: Path) -> None:
    data = CUT["png"]
    start = data.index(b"IDAT") + 4
    for position in np.linspace(start, len(data) - 40, 30).astype(int):
        broken = bytearray(data)
        broken[position] ^= 16
        with pytest.raises(ImageError, match="damaged"):
            read_image(write(tmp_path / "a.png", bytes(broken)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_headers_raise_image_error_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    refused = 0
    for data in CUT.values():
        for _ in range(40):
            broken = bytearray(data)
            for position in RNG.integers(0, 200, 4):
                broken[position] = RNG.integers(0, 256)
            write(path, bytes(broken))
            for read in (image_size, read_image, read_label_image):
                try:
                    read(path)
                except ImageError:  # any other exception fails the test
                    refused += 1
    assert refused > 200


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.png", content)
    for read in (image_size, read_image, read_label_image):
        with pytest.raises(ImageError, match=r"a\.png: cannot be read as an image"):
            read(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for read in (image_size, read_image, read_label_image):
        with pytest.raises(ImageError, match=r"none\.png: there is no such file"):
            read(tmp_path / "none.png")
        with pytest.raises(ImageError, match="cannot be read"):
            read(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11586, 30000, 2**31 - 1])
def test_too_many_pixels_are_refused_on_the_header(tmp_path: Path, side: int) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path = write(
        tmp_path / "bomb.png", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0"))
    )
    for read in (image_size, read_image, read_label_image):
        with pytest.raises(ImageError, match=r"bomb\.png.*(pixels|bomb)"):
            read(path)


def test_pixel_limit_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.png", png(GRAY, 8, 0))
    monkeypatch.setattr(image_io, "MAX_PIXELS", H * W)
    assert image_size(path) == (H, W)
    monkeypatch.setattr(image_io, "MAX_PIXELS", H * W - 1)
    with pytest.raises(ImageError, match="8 x 6 pixels is more than 47"):
        image_size(path)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_no_picture(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(GRAY.astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="32-bit"):
        read_image(tmp_path / "a.tif")


IDS32 = GRAY.astype(np.int32) * 100_000
LABELS = {
    "1 bit": (png(G1, 1, 0), G1),
    "2 bits": (png(G2, 2, 0), G2),
    "4 bits": (png(G4, 4, 0), G4),
    "8 bits": (png(GRAY, 8, 0), GRAY),
    "16 bits": (png(GRAY16, 16, 0), GRAY16),
    "palette": (png(GRAY, 8, 3, plte(256)), GRAY),
    "palette with alpha": (png(GRAY, 8, 3, plte(256) + TRANSPARENT), GRAY),
    "2-bit palette": (png(G2, 2, 3, plte(4)), G2),
    "gray and alpha": (png(np.dstack([GRAY, ALPHA]), 8, 4), GRAY),
    "gray as rgb": (png(three(GRAY), 8, 2), GRAY),
    "gray as rgba": (png(np.dstack([three(GRAY), ALPHA]), 8, 6), GRAY),
    "gray as 16-bit rgb": (png(three(GRAY16), 16, 2), GRAY16),
    "16-bit gray and alpha": (png(np.dstack([GRAY16, RGB16[..., 0]]), 16, 4), GRAY16),
    "bmp": (saved(GRAY, "BMP", "L"), GRAY),
}


@pytest.mark.parametrize("kind", LABELS)
def test_label_values_are_kept_exactly(tmp_path: Path, kind: str) -> None:
    data, expected = LABELS[kind]
    labels = read_label_image(write(tmp_path / "a.png", data))
    assert labels.dtype == expected.dtype
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("pixels", [GRAY16, IDS32], ids=["uint16", "int32"])
def test_label_tiff(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    labels = read_label_image(tmp_path / "a.tif")
    assert labels.dtype == pixels.dtype
    np.testing.assert_array_equal(labels, pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_labels_follow_the_orientation(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", saved(GRAY, kind, "L", exif=exif(6)))
    np.testing.assert_array_equal(read_label_image(path), np.rot90(GRAY, -1))


def test_what_cannot_hold_labels(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"colour image.*gray or palette PNG"):
        read_label_image(write(tmp_path / "a.png", png(RGB, 8, 2)))
    with pytest.raises(ImageError, match="colour image"):
        read_label_image(write(tmp_path / "a.png", png(RGB16, 16, 2)))
    with pytest.raises(ImageError, match="JPEG does not keep"):
        read_label_image(write(tmp_path / "a.jpg", saved(GRAY, "JPEG", "L")))
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="floating-point"):
        read_label_image(tmp_path / "a.tif")


@pytest.mark.real_data
def test_real_images_agree_with_pillow(real_data: Path) -> None:
    paths = sorted((real_data / "coco_tiny80" / "val2017").glob("*.jpg"))[:20]
    assert len(paths) == 20
    for path in paths:
        image = read_image(path)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert np.abs(image.astype(int) - expected).max() <= 2
        assert image_size(path) == image.shape[:2]


@pytest.mark.real_data
def test_real_instance_ids(real_data: Path) -> None:
    path = sorted((real_data / "pennfudan" / "masks").glob("*.png"))[0]
    labels = read_label_image(path)
    np.testing.assert_array_equal(labels, np.asarray(Image.open(path)))
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
