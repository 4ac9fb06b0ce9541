"""Letterbox, multi-scale resizing, SSD's zoom-out and crop, and the jitter of colours."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from instseg.data.transforms import (
    Compose,
    Expand,
    HsvJitter,
    IoUCrop,
    Letterbox,
    RandomHorizontalFlip,
    Resize,
    letterbox_size,
)
from instseg.structures import Instances
from tests.data.planted import check_on_pixels, many, planted, planted_pairs

TRANSFORMS = {
    "letterbox": Letterbox((37, 53)),
    "letterbox, antialiased": Letterbox([(20, 20), (64, 31)], antialias=True),
    "resize": Resize([(37, 53), (60, 24)], antialias=False),
    "expand": Expand(1.0),
    "iou_crop": IoUCrop(),
    "chain": Compose([Letterbox((40, 40)), Expand(), IoUCrop(), RandomHorizontalFlip()]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=40, deadline=None)
@given(pair=planted_pairs(), seed=st.integers(0, 999))
def test_box_and_mask_stay_on_their_pixels(name, pair, seed):
    torch.manual_seed(seed)
    image, target = TRANSFORMS[name](*pair)
    check_on_pixels(image, target, zoom=64 / min(pair[1].image_size))


@pytest.mark.parametrize("transform", [*TRANSFORMS.values(), HsvJitter()], ids=[*TRANSFORMS, "hsv"])
@pytest.mark.parametrize("count", [0, 3000])
def test_no_object_and_thousands(transform, count):
    image, target = transform(*many(count))
    assert tuple(image.shape) == (3, *target.image_size)
    assert len(target) == len(target.masks) <= count


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "frame", "expected"),
    [
        ((480, 640), (416, 416), (312, 416)),
        ((427, 640), (416, 416), (277, 416)),  # 427 * 0.65 = 277.55, not rounded
        ((640, 427), (416, 416), (416, 277)),
        ((100, 50), (416, 416), (416, 208)),
        ((100, 50), (200, 60), (120, 60)),
        ((1, 1), (32, 64), (32, 32)),
        ((1, 3000), (416, 416), (1, 416)),  # 0.14 rows are still one
    ],
)
def test_letterbox_sizes(size, frame, expected):
    assert letterbox_size(size, frame) == expected
    image, target = Letterbox(frame)(*planted(size, (0, 0, size[1], size[0])))
    assert target.image_size == tuple(image.shape[1:]) == expected
    torch.testing.assert_close(target.boxes, torch.tensor([[0.0, 0, *expected[::-1]]]))


def test_letterbox_resamples_as_the_reference_unless_told():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 121, 3), dtype=np.uint8)
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    shrunk, _ = Letterbox((40, 40))(image, Instances.empty((90, 121)))
    expected = cv2.resize(pixels, (40, 29), interpolation=cv2.INTER_LINEAR)
    assert np.abs(shrunk.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
    smooth, _ = Letterbox((40, 40), antialias=True)(image, Instances.empty((90, 121)))
    assert smooth.float().std() < 0.7 * shrunk.float().std()
    plain, _ = Resize((29, 40), antialias=False)(image, Instances.empty((90, 121)))
    assert torch.equal(plain, shrunk)


@pytest.mark.parametrize("transform", [Letterbox, Resize])
def test_several_sizes_are_drawn_alike(transform):
    torch.manual_seed(0)
    pair = planted((10, 10), (0, 0, 10, 10))
    drawn = [transform([(20, 20), (24, 24), (28, 28)])(*pair)[1].image_size for _ in range(90)]
    assert {(20, 20), (24, 24), (28, 28)} == set(drawn)
    assert all(drawn.count(size) > 15 for size in set(drawn))


# --- SSD -----------------------------------------------------------------------------------------


def test_expand_fills_with_the_mean_and_places_anywhere():
    torch.manual_seed(0)
    white = torch.full((3, 20, 30), 255, dtype=torch.uint8)
    areas, corners, whole = [], [], 0
    for _ in range(300):
        image, target = Expand(0.5)(tv_tensors.Image(white), planted((20, 30), (0, 0, 30, 20))[1])
        height, width = target.image_size
        left, top, right, bottom = (int(v) for v in target.boxes[0].tolist())
        assert (right - left, bottom - top) == (30, 20)
        assert (image[:, top:bottom, left:right] == 255).all()
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert (image[:, outside] == torch.tensor([[123], [117], [104]])).all()
        whole += target.image_size == (20, 30)
        if height > 30:
            areas.append(height / 20)
            corners.append((left / (width - 30), top / (height - 20)))
    assert 110 < whole < 190
    assert max(areas) <= 4 < max(areas) + 0.2
    for positions in zip(*corners, strict=True):
        assert min(positions) < 0.1
        assert max(positions) > 0.9


def crop_of(image):
    """The window of an image that holds its pixels' rows and columns."""
    top, left = int(image[0, 0, 0]), int(image[1, 0, 0])
    return left, top, left + image.shape[2], top + image.shape[1]


def located(boxes, crowd=()):
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    image = torch.stack([rows, columns, rows * 0]).to(torch.uint8)
    target = Instances(
        (120, 160),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(len(boxes)),
        is_crowd=torch.tensor([i in crowd for i in range(len(boxes))], dtype=torch.bool),
    )
    return tv_tensors.Image(image), target


BOXES = [[0.0, 0, 30, 40], [60, 50, 150, 118], [10.5, 20.25, 14.75, 90], [100, 10, 120, 30]]


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return width * height / (area_a + area_b - width * height)


@pytest.mark.parametrize("min_iou", [0.1, 0.3, 0.5])
def test_crop_overlaps_a_centred_object_by_the_least_iou(min_iou, monkeypatch):
    # The choices are: whole, any, min_iou; the last one is always the first to be tried.
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n).flip(0))
    crops = 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = IoUCrop(min_ious=[min_iou], trials=300)(*located(BOXES))
        frame = crop_of(image)
        centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in BOXES]
        inside = [frame[0] < x < frame[2] and frame[1] < y < frame[3] for x, y in centres]
        assert max(iou(b, frame) for b, i in zip(BOXES, inside, strict=True) if i) >= min_iou
        assert target.labels.tolist() == [i for i, kept in enumerate(inside) if kept]
        assert 0.3 * 160 - 1 <= image.shape[2] <= 160
        assert 0.5 <= image.shape[2] / image.shape[1] <= 2
        for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True):
            x1, y1, x2, y2 = BOXES[label]
            left, top, right, bottom = frame
            expected = [max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)]
            assert box == [v - o for v, o in zip(expected, [left, top] * 2, strict=True)]
        crops += frame != (0, 0, 160, 120)
    assert crops == 40


def test_every_choice_of_crop_has_its_share():
    """The whole image, any patch, or 0.9 of an object that fills 0.81: a third of the draws each.

    Less than one patch in ten overlaps the object by 0.9, hence few of the "any".
    """
    frame, box = (0, 0, 160, 120), [8, 6, 152, 114]
    windows = []
    for seed in range(300):
        torch.manual_seed(seed)
        image, _ = IoUCrop(min_ious=[0.9], trials=2000)(*located([box]))
        windows.append(crop_of(image))
    whole = windows.count(frame)
    close = sum(iou(box, w) >= 0.9 for w in windows)
    assert 70 < whole < 130
    assert 80 < close < 140
    assert 60 < 300 - whole - close < 120


def test_an_overlap_that_no_patch_has_leaves_other_choices():
    """A tiny object never fills half of a patch: the whole image or any patch is left."""
    sizes = set()
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = IoUCrop(min_ious=[0.5, 0.9])(*located([[70, 60, 73, 63]]))
        assert len(target) == 1
        sizes.add(image.shape[2])
    assert 160 in sizes
    assert len(sizes) > 5


def test_crowds_neither_attract_crops_nor_vanish_from_them():
    crowd, person = [0.0, 0, 160, 120], [100, 80, 120, 100]
    for seed in range(20):
        torch.manual_seed(seed)
        _, target = IoUCrop(0.1, 0.2, min_ious=[])(*located([crowd, person], crowd=[0]))
        assert target.labels.tolist() == [0, 1]
        image, target = IoUCrop(0.1, 0.2)(*located([crowd], crowd=[0]))
        assert image.shape[1:] == (120, 160)
        assert len(target) == 1


# --- colour --------------------------------------------------------------------------------------


def test_hsv_jitter_shifts_each_of_the_three_in_half_of_the_samples():
    torch.manual_seed(0)
    hsv = np.random.default_rng(0).integers((20, 60, 60), (160, 190, 190), (9, 11, 3))
    pixels = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    before = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(int)
    moved = []
    for _ in range(200):
        changed, _ = HsvJitter(10, 40, 40)(image, Instances.empty((9, 11)))
        assert changed.dtype == torch.uint8
        after = cv2.cvtColor(
            np.ascontiguousarray(changed.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2HSV
        )
        moved.append(np.median(after.astype(int) - before, axis=(0, 1)))
    for shifts, amount in zip(np.array(moved).T, (10, 40, 40), strict=True):
        assert np.abs(shifts).max() <= amount + 1
        assert shifts.min() < -0.7 * amount
        assert shifts.max() > 0.7 * amount
        assert 60 < (np.abs(shifts) < 1).sum() < 150


def test_hue_goes_round_and_the_others_are_clipped(monkeypatch):
    monkeypatch.setattr("instseg.data.transforms.color.happens", lambda p: True)
    monkeypatch.setattr("instseg.data.transforms.color.draw_float", lambda low, high: high)
    red = tv_tensors.Image(torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None])
    nothing = Instances.empty((1, 1))
    # 60 of 180 further on the circle of hues is green; saturation and value are at their limit.
    assert HsvJitter(60, 30, 30)(red, nothing)[0].flatten().tolist() == [0, 255, 0]
    blue = tv_tensors.Image(torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None])
    assert HsvJitter(60, 0, 0)(blue, nothing)[0].flatten().tolist() == [255, 0, 0]
    assert HsvJitter(0, 0, 0)(blue, nothing)[0] is blue


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Letterbox((0, 4)), "height, width"),
        (lambda: Letterbox([]), "at least one"),
        (lambda: Letterbox([(4, 4), (4,)]), "height, width"),
        (lambda: Expand(1.5), r"p must be in \[0, 1\], got 1.5"),
        (lambda: Expand(max_scale=0.5), "max_scale must be at least 1, got 0.5"),
        (lambda: Expand(fill=(1, 2)), "fill must be red, green and blue"),
        (lambda: Expand(fill=(1, 2, 256)), "fill must be red, green and blue"),
        (lambda: IoUCrop(0.0), "0 < min_scale"),
        (lambda: IoUCrop(0.5, 1.5), "<= 1, got 0.5 and 1.5"),
        (lambda: IoUCrop(min_ious=[0.1, 2]), r"each of min_ious must be in \[0, 1\], got 2"),
        (lambda: IoUCrop(max_aspect_ratio=0.5), "max_aspect_ratio must be at least 1"),
        (lambda: IoUCrop(trials=0), "trials must be at least 1"),
        (lambda: HsvJitter(hue=91), r"hue must be in 0\.\.90, got 91"),
        (lambda: HsvJitter(value=-1), r"value must be in 0\.\.255, got -1"),
    ],
)
def test_senseless_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
