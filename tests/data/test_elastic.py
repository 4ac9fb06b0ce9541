"""Deformations and mirrored windows against plain loops, and masks against the image's pixels."""

import math

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from instseg.data.mask_columns import decode_columns, encode_columns
from instseg.data.transforms import Compose
from instseg.data.transforms.elastic import ElasticDeformation, displacements
from instseg.data.transforms.random_window import RandomWindow
from instseg.data.transforms.resample import mirrored, resample
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, SparseMasks


def scene(dtype=torch.uint8, with_masks=True, size=(90, 120)):
    """Three objects; channel k of the image is 200 on object k alone. The last one is a crowd."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(rows - 30.0, columns - 40.0) < 20
    bar = (rows >= 50) & (rows < 80) & (columns >= 55) & (columns < 110)
    corner = (rows < 14) & (columns > 90)
    dense = np.stack([disc, bar, corner])
    codes = [rle.encode(mask) for mask in dense]
    target = Instances(
        image_size=size,
        boxes=torch.tensor([rle.to_box(code) for code in codes]),
        labels=torch.tensor([4, 2, 7]),
        masks=SparseMasks(codes, size, size) if with_masks else None,
        is_crowd=torch.tensor([False, False, True]),
    )
    return tv_tensors.Image(torch.from_numpy(dense * np.uint8(200)).to(dtype)), target


def tight_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def cubic(t, a=-0.75):
    """Keys' kernel, of which bicubic interpolation takes four taps a side."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def test_displacements_are_bicubic_between_nodes_from_corner_to_corner():
    generator = torch.Generator().manual_seed(1)
    nodes = torch.randn(2, 3, 3, generator=generator)
    height, width = 9, 14
    expected = np.zeros((2, height, width))
    for i in range(height):
        for j in range(width):
            y, x = i * 2 / (height - 1), j * 2 / (width - 1)
            for dy in range(-1, 3):
                for dx in range(-1, 3):
                    row, column = math.floor(y) + dy, math.floor(x) + dx
                    weight = cubic(y - row) * cubic(x - column)
                    value = nodes[:, min(max(row, 0), 2), min(max(column, 0), 2)]
                    expected[:, i, j] += weight * value.double().numpy()
    field = displacements(nodes, (height, width))
    np.testing.assert_allclose(field, expected, atol=1e-5)
    np.testing.assert_allclose(field[:, 0, 0], nodes[:, 0, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(field[:, -1, -1], nodes[:, 2, 2].numpy(), atol=1e-6)


def test_mirroring_does_not_repeat_the_border():
    index = np.arange(-9, 10, dtype=np.float32)
    # ... d c b | a b c d | c b a b c d ...
    expected = [3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert mirrored(index, 4).tolist() == expected
    assert mirrored(index, 1).tolist() == [0] * len(index)
    np.testing.assert_allclose(mirrored(np.array([-0.25, 3.25], np.float32), 4), [0.25, 2.75])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", [1, 5])
def test_image_is_bilinear_at_the_source_coordinates(dtype, channels):
    generator = np.random.default_rng(3)
    top = torch.iinfo(dtype).max
    image = generator.integers(0, top + 1, (channels, 7, 11)).astype(f"uint{8 * dtype.itemsize}")
    # Steps of 1/32 pixel are exact in OpenCV's arithmetic too.
    rows = (generator.integers(0, 6 * 32 + 1, (6, 5)) / 32).astype(np.float32)
    columns = (generator.integers(0, 10 * 32 + 1, (6, 5)) / 32).astype(np.float32)
    expected = np.zeros((channels, 6, 5))
    for i in range(6):
        for j in range(5):
            y, x = math.floor(rows[i, j]), math.floor(columns[i, j])
            fy, fx = rows[i, j] - y, columns[i, j] - x
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                if weight:
                    expected[:, i, j] += weight * image[:, y + dy, x + dx]
    source = tv_tensors.Image(torch.from_numpy(image))
    moved, target = resample(source, Instances.empty((7, 11)), rows, columns)
    assert moved.dtype == dtype
    assert target.image_size == (6, 5)
    assert np.abs(moved.numpy().astype(float) - expected).max() <= 0.51 + 1e-4 * top * (top > 255)


@pytest.mark.parametrize("options", [{}, {"rotation": 180.0, "scale": (0.7, 1.5)}])
def test_masks_and_boxes_stay_on_their_pixels(options):
    image, target = scene()
    transform = ElasticDeformation(sigma=8, **options)
    seen = 0
    for seed in range(12):
        torch.manual_seed(seed)
        moved_image, moved = transform(image, target)
        assert moved_image.shape == image.shape
        assert moved.masks.source_size == moved.masks.size == moved.image_size == (90, 120)
        for i, code in enumerate(instance_rles(moved)):
            channel = {4: 0, 2: 1, 7: 2}[int(moved.labels[i])]
            assert bool(moved.crowd[i]) == (channel == 2)
            mask = rle.decode(code) == 1
            # The nearest pixel is the object's where more than half of the intensity is its own,
            # apart from corners, at which the two differ by a pixel's part.
            truth = moved_image[channel].numpy() > 100
            assert (mask ^ truth).sum() <= 0.03 * mask.sum() + 12
            assert moved.boxes[i].tolist() == tight_box(mask)
            seen += 1
    assert seen >= 30


def test_masks_are_the_nearest_pixels_of_dense_masks():
    """The whole masks, pixel by pixel, also of polygons under a map."""
    image, target = scene()
    polygon = [np.array([[10.0, 20], [70, 12], [55, 70]])]
    ring = rle.encode(np.pad(np.ones((10, 12), np.uint8), ((5, 30), (20, 28))))
    target.masks = SparseMasks([polygon, target.masks.segmentations[1], ring], (45, 60), (90, 120))
    target.masks.segmentations[1] = [np.array([[1.0, 1], [30, 1], [30, 40], [1, 40]])]
    target = target.transformed(target.masks.transform.resize((45, 60), (90, 120)), (90, 120))
    dense = np.stack([rle.decode(code) for code in instance_rles(target)])
    generator = np.random.default_rng(0)
    rows = mirrored(generator.normal(45, 40, (70, 50)).astype(np.float32), 90)
    columns = mirrored(generator.normal(60, 60, (70, 50)).astype(np.float32), 120)
    _, moved = resample(image, target, rows, columns)
    nearest = np.floor(rows + 0.5).astype(int), np.floor(columns + 0.5).astype(int)
    got = np.stack([rle.decode(code) for code in instance_rles(moved)])
    assert np.array_equal(got, dense[:, nearest[0], nearest[1]])


def test_touching_objects_neither_overlap_nor_part():
    size = (64, 64)
    left = np.zeros(size, np.uint8)
    left[:, :32] = 1
    codes = [rle.encode(left), rle.encode(1 - left)]
    target = Instances(
        size,
        torch.tensor([[0.0, 0, 32, 64], [32, 0, 64, 64]]),
        torch.tensor([0, 0]),
        masks=SparseMasks(codes, size, size),
    )
    torch.manual_seed(2)
    _, moved = ElasticDeformation()(tv_tensors.Image(torch.zeros(1, 64, 64).byte()), target)
    masks = [rle.decode(code) for code in instance_rles(moved)]
    assert (masks[0] + masks[1] == 1).all()
    assert not np.array_equal(masks[0], left)


def test_boxes_without_masks_hold_the_pixels_from_inside_them():
    image, target = scene(with_masks=False)
    for seed in range(6):
        torch.manual_seed(seed)
        moved_image, moved = ElasticDeformation(rotation=20)(image, target)
        assert moved.masks is None
        bar = moved_image[1].numpy() > 100  # which fills its box
        box = moved.boxes[moved.labels.tolist().index(2)].numpy()
        assert np.abs(box - tight_box(bar)).max() <= 1


def test_rotation_turns_about_the_centre():
    image, target = scene()
    transform = ElasticDeformation(sigma=0, rotation=180)
    torch.manual_seed(0)
    moved_image, _ = transform(image, target)
    angle = _angle_of(0)
    rows, columns = np.mgrid[:90, :120] - np.array([44.5, 59.5]).reshape(2, 1, 1)
    y = 44.5 + math.cos(angle) * rows - math.sin(angle) * columns
    x = 59.5 + math.sin(angle) * rows + math.cos(angle) * columns
    inside = (y > 1) & (y < 88) & (x > 1) & (x < 118)
    nearest = image[:, np.rint(y).clip(0, 89).astype(int), np.rint(x).clip(0, 119).astype(int)]
    agree = (nearest.numpy() > 100) == (moved_image.numpy() > 100)
    assert agree[:, inside].mean() > 0.99
    assert abs(math.sin(angle)) > 0.1


def _angle_of(seed):
    torch.manual_seed(seed)
    torch.empty(()).uniform_(0, 1)
    torch.randn(2, 3, 3)
    return math.radians(float(torch.empty(()).uniform_(-180, 180)))


def test_no_displacement_changes_nothing():
    image, target = scene(torch.uint16)
    moved_image, moved = ElasticDeformation(sigma=0)(image, target)
    assert torch.equal(moved_image, image)
    assert moved.masks.segmentations == target.masks.segmentations
    assert torch.equal(moved.boxes, target.boxes)


def test_scale_enlarges_about_the_centre_and_removes_what_leaves():
    image, target = scene()
    moved_image, moved = ElasticDeformation(sigma=0, scale=(4.0, 4.0))(image, target)
    assert moved.labels.tolist() == [4, 2]  # the corner left
    expected = image[:, 33 + np.arange(90) // 4, :][:, :, 45 + np.arange(120) // 4]
    assert ((moved_image > 100) == (expected > 100)).float().mean() > 0.97


def test_samples_are_reproducible_and_p_is_a_probability():
    image, target = scene()
    pairs = []
    for _ in range(2):
        torch.manual_seed(5)
        pairs.append(ElasticDeformation()(image, target))
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert pairs[0][1].masks.segmentations == pairs[1][1].masks.segmentations
    assert not torch.equal(pairs[0][0], image)
    assert ElasticDeformation(p=0)(image, target)[0] is image


def test_tiny_images_and_no_objects():
    for size in ((1, 1), (1, 9), (3, 2)):
        image = tv_tensors.Image(torch.full((2, *size), 7, dtype=torch.uint8))
        moved_image, moved = Compose([ElasticDeformation()])(image, Instances.empty(size))
        assert torch.equal(moved_image, image)
        assert len(moved) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -1}, "sigma.*-1"),
        ({"sigma": math.nan}, "sigma.*nan"),
        ({"grid": 1}, "grid.*1"),
        ({"rotation": 200}, "rotation.*200"),
        ({"scale": (2.0, 1.0)}, "min_scale.*2.0"),
        ({"p": 1.5}, "p must be"),
    ],
)
def test_elastic_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ElasticDeformation(**arguments)


@pytest.mark.parametrize("size", [(200, 300), (40, 200), (60, 50), (300, 30)])
def test_windows_are_numpys_mirrored_padding(size):
    """Each image, and its mask, is somewhere in numpy's reflected padding of itself."""
    image, target = scene()
    numbered = image.clone()
    numbered[0] = torch.arange(90, dtype=torch.uint8)[:, None]
    numbered[1] = torch.arange(120, dtype=torch.uint8)
    dense = np.stack([rle.decode(code) for code in instance_rles(target)])
    pad = ((0, 0), (210, 210), (210, 210))
    padded, padded_masks = np.pad(numbered, pad, "reflect"), np.pad(dense, pad, "reflect")
    offsets = set()
    for seed in range(5):
        torch.manual_seed(seed)
        got, moved = Compose([RandomWindow(size)])(tv_tensors.Image(numbered), target)
        assert got.shape == (3, *size)
        torch.manual_seed(seed)
        top, left = (
            int(torch.randint(min(a - b, 0), max(a - b, 0) + 1, ()))
            for a, b in zip((90, 120), size, strict=True)
        )
        offsets.add((top, left))
        part = np.s_[:, 210 + top : 210 + top + size[0], 210 + left : 210 + left + size[1]]
        assert np.array_equal(got.numpy(), padded[part])
        masks = {
            int(label): rle.decode(code)
            for label, code in zip(moved.labels, instance_rles(moved), strict=True)
        }
        for label, expected in zip((4, 2, 7), padded_masks[part], strict=True):
            assert np.array_equal(masks.get(label, np.zeros(size)), expected)
    assert len(offsets) > 1


def test_window_refuses_sizes_below_one():
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        RandomWindow((0, 5))


def test_columns_of_run_lengths():
    generator = np.random.default_rng(1)
    for trial in range(60):
        height, width = generator.integers(1, 12, 2)
        mask = generator.random((height, width)) < (0.0, 0.3, 0.7, 1.0)[trial % 4]
        left = int(generator.integers(0, width + 1))
        right = int(generator.integers(left, width + 1))
        got = decode_columns(rle.encode(mask), left, right)
        assert np.array_equal(got, mask[:, left:right])
        mask[:, :left], mask[:, right:] = False, False
        assert encode_columns(mask[:, left:right], left, int(width)) == rle.encode(mask)
