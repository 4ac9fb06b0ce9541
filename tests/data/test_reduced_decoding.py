"""JPEGs decoded at reduced scale: when, in which geometry, and that all else stays the same."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from instseg.data import dataset as dataset_module
from instseg.data.dataset import DetectionDataset, Sample
from instseg.data.image_io import ImageError, read_image
from instseg.data.index import Record
from instseg.data.sampling import SampleKey
from instseg.data.transforms import (
    Compose,
    LargeScaleJitter,
    Letterbox,
    Mosaic,
    RandomHorizontalFlip,
    Resize,
    ResizeShortestEdge,
    SimpleCopyPaste,
)
from tests.data.small_set import contents

HEIGHT, WIDTH = 96, 144


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture ``uint8 [H, W, 3]`` without symmetry: every place has its own colour."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    layers = [rows / height, columns / width, 0.5 + 0.5 * np.sin(rows / 9) * np.cos(columns / 13)]
    return (np.stack(layers, axis=-1) * 200 + 20).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str = "RGB", orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    options = {} if kind == "PNG" else {"quality": 95, "subsampling": 0}
    Image.fromarray(pixels).convert(mode).save(buffer, kind, exif=exif, **options)
    path.write_bytes(buffer.getvalue())
    return path


def block_means(pixels: np.ndarray, divisor: int) -> np.ndarray:
    height, width = pixels.shape[0] // divisor, pixels.shape[1] // divisor
    blocks = pixels.astype(np.float64).reshape(height, divisor, width, divisor, -1)
    return blocks.mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("least", "divisor"),
    [
        ((96, 144), 1),
        ((49, 40), 1),  # one row more than half
        ((40, 73), 1),  # one column more
        ((48, 72), 2),
        ((25, 10), 2),
        ((24, 36), 4),
        ((13, 1), 4),
        ((12, 18), 8),
        ((1, 1), 8),
        ((500, 500), 1),
    ],
)
def test_the_smallest_scale_that_suffices(tmp_path, least, divisor):
    whole = scene()
    reduced = read_image(save(tmp_path / "a.jpg", whole), least_size=least)
    assert reduced.shape == (HEIGHT // divisor, WIDTH // divisor, 3)
    assert reduced.flags["C_CONTIGUOUS"]
    difference = np.abs(reduced - block_means(whole, divisor))
    assert difference.max() < 12
    assert difference.mean() < 1.5


@pytest.mark.parametrize(("size", "divisor"), [((95, 144), 1), ((94, 144), 2), ((96, 140), 4)])
def test_sides_that_are_no_multiples_are_not_divided(tmp_path, size, divisor):
    reduced = read_image(save(tmp_path / "a.jpg", scene(*size)), least_size=(1, 1))
    assert reduced.shape[:2] == (size[0] // divisor, size[1] // divisor)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_the_whole_picture(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", scene(), orientation=orientation)
    upright = read_image(path)
    is_turned = orientation >= 5
    assert upright.shape[:2] == ((WIDTH, HEIGHT) if is_turned else (HEIGHT, WIDTH))
    # Fits in a half only if height and width are taken as the upright picture's.
    least = (72, 48) if is_turned else (48, 72)
    reduced = read_image(path, least_size=least)
    assert reduced.shape[:2] == least
    assert np.abs(reduced - block_means(upright, 2)).mean() < 1.5


def test_gray_jpegs_keep_their_kinds(tmp_path):
    gray = scene()[..., 2]
    path = save(tmp_path / "a.jpg", gray, mode="L")
    colour = read_image(path, least_size=(1, 1))
    assert colour.shape == (12, 18, 3)
    assert (colour == colour[..., :1]).all()
    one = read_image(path, channels=1, least_size=(1, 1))
    assert np.array_equal(one, colour[..., :1])
    assert np.abs(one - block_means(gray[..., None], 8)).mean() < 1.5


def test_other_files_come_whole(tmp_path):
    png = save(tmp_path / "a.png", scene())
    cmyk = save(tmp_path / "b.jpg", scene(), mode="CMYK")
    deep = tmp_path / "c.png"
    cv2.imwrite(str(deep), scene().astype(np.uint16) * 257)
    for path in (png, cmyk, deep):
        assert np.array_equal(read_image(path, least_size=(1, 1)), read_image(path))
    kept = read_image(deep, bits16="keep", least_size=(1, 1))
    assert kept.dtype == np.uint16
    assert kept.shape[:2] == (HEIGHT, WIDTH)


def test_a_jpeg_cut_short_is_named_at_every_scale(tmp_path):
    path = save(tmp_path / "a.jpg", scene())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"a\.jpg: the file is cut short"):
        read_image(path, least_size=(1, 1))


@pytest.mark.parametrize(
    "transform",
    [
        ResizeShortestEdge([10, 17, 24], max_size=40),
        ResizeShortestEdge(30, max_size=33),
        Resize([(10, 90), (31, 20)]),
        Letterbox([(40, 40), (20, 90)], antialias=True),
        LargeScaleJitter((30, 40), 0.3, 1.7),
    ],
)
def test_no_draw_passes_the_largest_size(transform, monkeypatch):
    drawn = []

    def resized(image, target, size, **settings):
        drawn.append(size)
        return image, target.resized(size)

    for name in ("resize", "geometric"):
        monkeypatch.setattr(f"instseg.data.transforms.{name}.resize", resized)
    image = v2.functional.to_image(scene(60, 100))
    target = dataset_module.instances_of(record(Path("a"), (60, 100)), with_masks=False)
    for _ in range(300):
        if isinstance(transform, LargeScaleJitter):
            monkeypatch.setattr(
                "instseg.data.transforms.geometric.random_window", lambda *pair: pair[:2]
            )
        transform(image, target)
    bound = transform.largest_size((60, 100))
    assert Compose([transform, RandomHorizontalFlip()]).largest_size((60, 100)) == bound
    assert max(h for h, _ in drawn) <= bound[0] <= max(h for h, _ in drawn) + 1
    assert max(w for _, w in drawn) <= bound[1] <= max(w for _, w in drawn) + 1


def test_all_pixels_are_needed_where_no_antialiased_resize_comes_first():
    for chain in (
        [],
        [RandomHorizontalFlip(), ResizeShortestEdge(10, 20)],
        [Letterbox((8, 8), antialias=False)],
        [Resize((8, 8), antialias=False)],
    ):
        assert Compose(chain).largest_size((60, 100)) == (60, 100)


def record(path: Path, size=(HEIGHT, WIDTH)) -> Record:
    height, width = size
    polygon = np.array([[8.0, 8], [width - 20, 16], [width / 2, height - 8]])
    return Record(
        image_id=1,
        path=path,
        size=size,
        boxes=np.array([[8, 8, width - 20, height - 8]], dtype=np.float32),
        labels=np.zeros(1, dtype=np.int64),
        is_crowd=np.zeros(1, dtype=np.bool_),
        annotation_ids=np.ones(1, dtype=np.int64),
        segmentations=[[polygon]],
    )


def sample(records: list[Record], chain: list, decode: str, **settings) -> Sample:
    dataset = DetectionDataset(
        records, Compose(chain), seed=3, with_masks=True, decode=decode, **settings
    )
    made = dataset[SampleKey(0, 0)]
    assert made is not None
    return made


@pytest.fixture
def shapes_read(monkeypatch) -> list[tuple[int, int]]:
    """Sizes of the pixel arrays that the data set gets from files."""
    seen = []

    def watched(*args, **settings):
        pixels = read_image(*args, **settings)
        seen.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(dataset_module, "read_image", watched)
    return seen


CHAIN = [ResizeShortestEdge([30, 40], max_size=200), RandomHorizontalFlip()]


def test_a_sample_differs_in_its_pixels_alone_and_little(tmp_path, shapes_read):
    records = [record(save(tmp_path / "a.jpg", scene()))]
    full, reduced = (sample(records, CHAIN, decode) for decode in ("full", "reduced"))
    assert shapes_read == [(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2)]
    assert contents(full.target) == contents(reduced.target)
    assert full.original_size == reduced.original_size == (HEIGHT, WIDTH)
    assert full.image.shape == reduced.image.shape == (3, *full.target.image_size)
    difference = (full.image.double() - reduced.image.double()).abs()
    assert 0 < difference.mean() < 1.5
    assert torch.equal(reduced.image, sample(records, CHAIN, "reduced").image)


def test_images_for_mosaics_come_whole_and_those_to_paste_do_not(tmp_path, shapes_read):
    records = [record(save(tmp_path / f"{i}.jpg", scene())) for i in range(3)]
    sample(records, CHAIN, "reduced", mix_read=[Mosaic((40, 60), p=1.0)])
    assert set(shapes_read) == {(HEIGHT, WIDTH)}
    shapes_read.clear()
    sample(records, CHAIN, "reduced", mix_read=[Mosaic((40, 60), p=1.0)], mix_read_epochs=0)
    sample(records, CHAIN, "reduced", mix_transformed=[SimpleCopyPaste(p=1.0)])
    assert shapes_read == [(HEIGHT // 2, WIDTH // 2)] * 3


@pytest.mark.parametrize("size", [(97, 144), (48, 72), (192, 288)])
@pytest.mark.parametrize("short", [10, 24, 40])
def test_a_size_that_the_annotations_get_wrong_is_found_at_every_scale(tmp_path, size, short):
    wrong = [record(save(tmp_path / "a.jpg", scene()), size)]
    named = rf"height x width is 96x144, but .* state {size[0]}x{size[1]}"
    for decode in ("full", "reduced"):
        with pytest.raises(ImageError, match=named):
            sample(wrong, [ResizeShortestEdge(short, max_size=200)], decode)
