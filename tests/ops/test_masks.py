"""Ground-truth masks: moved, encoded, and cut to training targets."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path

from instseg import ops
from instseg.ops import instance_rles, mask_targets, rle
from instseg.structures import AxisTransform, BitMasks, Instances, RoIMasks, SparseMasks

SIZE = (40, 60)
POLYGON = [np.array([[10.0, 5], [50, 8], [44, 35], [12, 30]])]
TWO_PARTS = [
    np.array([[2.0, 2], [20, 2], [20, 20], [2, 20]]),
    np.array([[30.0, 25], [58, 25], [45, 39]]),
]


def ring() -> np.ndarray:
    canvas = np.zeros(SIZE, dtype=np.uint8)
    cv2.circle(canvas, (30, 20), 15, 1, -1)
    cv2.circle(canvas, (30, 20), 7, 0, -1)
    return canvas


def masks() -> SparseMasks:
    return SparseMasks([POLYGON, TWO_PARTS, rle.encode(ring())], SIZE, SIZE)


def instances(sparse: SparseMasks) -> Instances:
    n = len(sparse)
    return Instances(
        sparse.size, torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64), masks=sparse
    )


def pixels(sparse: SparseMasks) -> np.ndarray:
    return np.stack([rle.decode(code) for code in instance_rles(instances(sparse))])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


def test_untouched_masks_are_coco_rasters():
    got = pixels(masks())
    assert np.array_equal(got[0], rle.decode(rle.from_polygons(POLYGON, SIZE)))
    parts = [rle.decode(rle.from_polygons([p], SIZE)) for p in TWO_PARTS]
    assert np.array_equal(got[1], parts[0] | parts[1])
    assert np.array_equal(got[2], ring())


def test_flip_and_crop_are_exact_on_pixels():
    before = pixels(masks())
    flipped = pixels(masks().transformed(AxisTransform.hflip(60), SIZE))
    assert np.array_equal(flipped[2], before[2][:, ::-1])
    assert iou(flipped[0], before[0][:, ::-1]) > 0.97
    cropped = pixels(masks().transformed(AxisTransform.crop(15, 4), (20, 30)))
    assert np.array_equal(cropped, before[:, 4:24, 15:45])
    padded = pixels(masks().transformed(AxisTransform.crop(-5, -3), (50, 70)))
    assert np.array_equal(padded[2][3:43, 5:65], before[2])
    assert padded[2].sum() == before[2].sum()


def test_resize_follows_the_image():
    polygon, parts, ring_ = pixels(
        masks().transformed(AxisTransform.resize(SIZE, (80, 120)), (80, 120))
    )
    assert np.array_equal(ring_, ring().repeat(2, 0).repeat(2, 1))
    centers = np.stack(np.meshgrid(np.arange(120) + 0.5, np.arange(80) + 0.5), -1).reshape(-1, 2)
    for got, polygons in ((polygon, POLYGON), (parts, TWO_PARTS)):
        inside = [Path(p * 2).contains_points(centers).reshape(80, 120) for p in polygons]
        assert iou(got, np.any(inside, axis=0)) > 0.97


BOXES = torch.tensor([[8.0, 3, 52, 37], [14, 4, 47, 36], [20.5, 10.2, 33.1, 28.8]])


def covered(mask: np.ndarray, box: torch.Tensor, size: int) -> np.ndarray:
    """The covered fraction of each cell, by counting points of a fine grid."""
    fine = 16
    x1, y1, x2, y2 = box.tolist()
    xs = x1 + (np.arange(size * fine) + 0.5) / (size * fine) * (x2 - x1)
    ys = y1 + (np.arange(size * fine) + 0.5) / (size * fine) * (y2 - y1)
    points = mask[np.floor(ys).astype(int)[:, None], np.floor(xs).astype(int)[None]]
    return points.reshape(size, fine, size, fine).mean((1, 3))


@pytest.mark.parametrize("index", [0, 2], ids=["polygon", "rle"])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
def test_targets_are_covered_fractions(index, flipped, scale):
    sparse, size = masks(), (SIZE[0] * scale, SIZE[1] * scale)
    sparse = sparse.transformed(AxisTransform.resize(SIZE, size), size)
    if flipped:
        sparse = sparse.transformed(AxisTransform.hflip(size[1]), size)
    got = mask_targets(sparse, torch.full((3,), index), BOXES * scale, 7)
    whole = pixels(sparse)[index]
    for target, box in zip(got, BOXES * scale, strict=True):
        assert np.abs(target.numpy() - covered(whole, box, 7)).mean() < 0.06


def test_bitmap_and_rle_targets_agree():
    sparse = masks().select([2])
    bits = BitMasks(torch.from_numpy(ring())[None])
    index = torch.zeros(3, dtype=torch.int64)
    inner = BOXES.clone()
    got, wanted = mask_targets(sparse, index, inner, 14), mask_targets(bits, index, inner, 14)
    assert torch.allclose(got, wanted, atol=1e-6)


def pixel_masks(draw):
    """Noise, ellipses, and all or nothing, some dozen pixels wide."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["noise", "ellipse", "full", "empty"]))
    if kind == "noise":
        return random.integers(0, 2, (height, width)).astype(np.uint8)
    canvas = np.full((height, width), kind == "full", dtype=np.uint8)
    if kind == "ellipse":
        middle, axes = random.integers(0, 40, 2), random.integers(1, 20, 2)
        cv2.ellipse(canvas, middle.tolist(), axes.tolist(), 30, 0, 360, 1, -1)
    return canvas


SIDES = st.one_of(st.floats(0, 60, width=32), st.sampled_from([0.0, 1e-3, 14.0, 28.0, 200.0]))


@pytest.mark.parametrize("aligned", [True, False])
@settings(max_examples=100, deadline=None)
@given(
    mask=st.composite(pixel_masks)(),
    corners=st.lists(
        st.tuples(*[st.floats(-30, 50, width=32)] * 2, SIDES, SIDES), min_size=1, max_size=4
    ),
    size=st.sampled_from([1, 7, 14]),
)
def test_rle_targets_are_roi_align_of_the_pixels(aligned, mask, corners, size):
    boxes = torch.tensor(corners)
    boxes[:, 2:] += boxes[:, :2]
    image_size = mask.shape
    sparse = SparseMasks([rle.encode(mask)], image_size, image_size)
    got = mask_targets(
        sparse, torch.zeros(len(boxes), dtype=torch.int64), boxes, size, aligned=aligned
    )
    pixels = torch.from_numpy(mask)[None, None].float()
    wanted = ops.roi_align(pixels, [boxes], size, aligned=aligned)[:, 0]
    assert torch.allclose(got, wanted, atol=1e-5)


def test_targets_do_not_depend_on_the_chunks(monkeypatch):
    random = np.random.default_rng(0).integers(0, 2, SIZE).astype(np.uint8)
    sparse = SparseMasks([rle.encode(random)], SIZE, SIZE)
    index = torch.zeros(3, dtype=torch.int64)
    whole = mask_targets(sparse, index, BOXES, 7)
    monkeypatch.setattr(ops.masks, "_CHUNK", 50)
    assert torch.allclose(mask_targets(sparse, index, BOXES, 7), whole, atol=1e-6)


def test_targets_in_a_huge_image():
    # Its pixels would take 4 GB. The right half of the box is foreground.
    size = (65535, 65535)
    code = rle.from_uncompressed([60000 * 65535, 5535 * 65535], size)
    sparse = SparseMasks([code], size, size)
    box = torch.tensor([[59986.0, 100.0, 60014.0, 128.0]])
    got = mask_targets(sparse, torch.zeros(1, dtype=torch.int64), box, 28)
    wanted = (torch.arange(28) >= 14).float().expand(1, 28, 28)
    assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("counts", [b"", b"1", rle.encode(np.zeros((9, 9)))["counts"], b"0N0"])
def test_broken_runs_are_refused(counts):
    sparse = SparseMasks([{"size": [4, 5], "counts": counts}], (4, 5), (4, 5))
    with pytest.raises(ValueError, match=r"RLE counts"):
        mask_targets(sparse, torch.zeros(1, dtype=torch.int64), BOXES[:1], 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": BOXES[0]}, ValueError, r"boxes must be \[N, 4\], got \[4\]"),
        ({"boxes": BOXES.int()}, TypeError, "boxes must be a floating tensor, got torch.int32"),
        ({"boxes": BOXES / 0}, ValueError, "boxes must be finite, row 0"),
        ({"indices": torch.zeros(2).long()}, ValueError, r"indices must be \[3\], got \[2\]"),
        ({"indices": torch.zeros(3)}, TypeError, "indices must be int64, got torch.float32"),
        ({"indices": torch.tensor([0, 3, 1])}, ValueError, r"0\.\.2, got \[0, 3, 1\]"),
        ({"indices": torch.tensor([0, -1, 1])}, ValueError, r"0\.\.2, got \[0, -1, 1\]"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"indices": torch.arange(3), "boxes": BOXES, "size": 7} | change
    bits = BitMasks(torch.zeros(3, *SIZE, dtype=torch.bool))
    for truth in (masks(), bits):
        with pytest.raises(error, match=message):
            mask_targets(truth, **arguments)


def test_targets_come_in_the_order_of_the_boxes():
    order = torch.tensor([2, 0, 1])
    got = mask_targets(masks(), order, BOXES, 7)
    for i in range(3):
        assert torch.equal(got[i], mask_targets(masks(), order[i : i + 1], BOXES[i : i + 1], 7)[0])


def test_empty_and_outside():
    assert mask_targets(masks(), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 7).shape == (
        0,
        7,
        7,
    )
    outside = torch.tensor([[70.0, 50, 90, 80]])
    assert mask_targets(masks(), torch.tensor([2]), outside, 7).sum() == 0
    assert mask_targets(masks(), torch.tensor([0]), outside, 7).sum() == 0
    endless = torch.tensor([[-3e38, -3e38, 3e38, 3e38]])
    assert mask_targets(masks(), torch.tensor([2]), endless, 7).sum() == 0


@pytest.mark.parametrize("index", [0, 1])
def test_boxes_without_area_have_empty_targets(index):
    flat = torch.tensor([[10.0, 10, 10, 40], [30, 20, 5, 30]])
    assert mask_targets(masks(), torch.full((2,), index), flat, 7).sum() == 0
    mixed = torch.cat([flat[:1], BOXES[index : index + 1], flat[1:]])
    got = mask_targets(masks(), torch.full((3,), index), mixed, 7)
    assert got[[0, 2]].sum() == 0
    assert torch.equal(got[1], mask_targets(masks(), torch.tensor([index]), mixed[1:2], 7)[0])
    assert got[1].sum() > 0


def test_predictions_are_no_targets():
    with pytest.raises(TypeError, match="SparseMasks or BitMasks in the targets, got RoIMasks"):
        mask_targets(RoIMasks(torch.rand(1, 4, 4)), torch.zeros(1, dtype=torch.int64), BOXES[:1], 7)
    with pytest.raises(ValueError, match="no masks"):
        instance_rles(Instances(SIZE, BOXES, torch.zeros(3, dtype=torch.int64)))


def test_rle_module():
    code = rle.encode(ring())
    assert np.array_equal(rle.decode(code), ring())
    assert rle.area(code) == ring().sum()
    ys, xs = np.nonzero(ring())
    assert rle.to_box(code) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    many = rle.decode_many([code, rle.encode(1 - ring())], SIZE)
    assert np.array_equal(many, np.stack([ring(), 1 - ring()]))
    assert rle.decode_many([], SIZE).shape == (0, *SIZE)
    counts = [5, 3, 12]
    flat = rle.decode(rle.from_uncompressed(counts, (4, 5))).reshape(-1, order="F")
    assert flat.tolist() == [0] * 5 + [1] * 3 + [0] * 12
    other = np.zeros(SIZE, dtype=np.uint8)
    other[:, :30] = 1
    both = rle.merge([code, rle.encode(other)], intersect=True)
    assert np.array_equal(rle.decode(both), ring() & other)
