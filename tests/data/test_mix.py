"""Mosaic and MixUp: cases worked by hand, and boxes and masks against the pixels they are for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from instseg.data.transforms import MixUp, Mosaic, mixup, mosaic
from instseg.data.transforms.mix import bounded, concatenate
from instseg.ops import instance_rles, rle
from instseg.structures import AxisTransform, BitMasks, Instances, SparseMasks
from tests.data.planted import check_on_pixels, many, planted, planted_pairs


def solid(value, size=(8, 8)):
    """An image of one value with one object that is all of it; its label is the value."""
    image, target = planted(size, (0, 0, size[1], size[0]))
    target.labels[:] = value
    return tv_tensors.Image(torch.full_like(image, value)), target


def draws(monkeypatch, module, *values):
    """Let the module's random numbers be ``values``, in turn."""
    queue = iter(values)
    monkeypatch.setattr(module, "draw_float", lambda low, high: next(queue))


# --- mosaic --------------------------------------------------------------------------------------


def test_a_mosaic_worked_by_hand(monkeypatch):
    # Scale 1/2; the point is 1/4 of a side below the centre and 1/2 to the right of it, no shift:
    # row 8 * (0.5 + 0.5 * 0.25) = 5, column 8 * (0.5 + 0.5 * 0.5) = 6.
    draws(monkeypatch, mosaic, 0.5, 0.25, 0.0, 0.5, 0.0)
    tiles = [solid(1), solid(2), solid(3, (4, 8)), solid(4, (16, 16))]
    image, target = Mosaic((8, 8), fill=9)(tiles[0], tiles[1:])
    expected = [
        "99999999",
        "99111122",
        "99111122",
        "99111122",
        "99111122",
        "99333344",  # the third image is half as high as it is wide
        "99333344",
        "99999944",
    ]
    assert image[0].tolist() == [[int(v) for v in row] for row in expected]
    assert target.labels.tolist() == [1, 2, 3, 4]
    assert target.boxes.tolist() == [[2, 1, 6, 5], [6, 1, 8, 5], [2, 5, 6, 7], [6, 5, 8, 8]]
    for label, code in zip("1234", instance_rles(target), strict=True):
        shown = np.array([[pixel == label for pixel in row] for row in expected])
        assert np.array_equal(rle.decode(code), shown)


def test_a_shift_moves_the_point(monkeypatch):
    draws(monkeypatch, mosaic, 1.0, 0.0, 0.25, 0.0, -0.125)
    image, _ = Mosaic((8, 8))(solid(1), [solid(2), solid(3), solid(4)])
    assert (image[:, :6, :3] == 1).all()
    assert (image[:, :6, 3:] == 2).all()
    assert (image[:, 6:, :3] == 3).all()
    assert (image[:, 6:, 3:] == 4).all()


@pytest.mark.parametrize(
    ("min_visibility", "crowd", "kept"),
    [(0.25, False, [1, 2, 3, 4]), (0.26, False, [2, 4]), (0.26, True, [1, 2, 3, 4])],
)
def test_what_is_mostly_cut_away_goes_unless_it_is_a_crowd(
    monkeypatch, min_visibility, crowd, kept
):
    draws(monkeypatch, mosaic, 1.0, 0.0, 0.0, -0.25, 0.0)  # of the left images, a quarter is left
    tiles = [solid(value) for value in (1, 2, 3, 4)]
    for _, target in tiles:
        target.is_crowd[:] = crowd
    _, target = Mosaic((16, 8), min_visibility=min_visibility)(tiles[0], tiles[1:])
    assert target.labels.tolist() == kept
    assert target.crowd.tolist() == [crowd] * len(kept)


def test_what_is_wholly_outside_goes_at_any_setting(monkeypatch):
    draws(monkeypatch, mosaic, 2.0, -0.5, 0.0, 0.5, 0.1)  # row -4, column 12.8
    tiles = [solid(value) for value in (1, 2, 3, 4)]
    for _, target in tiles:
        target.is_crowd[:] = True
    image, target = Mosaic((8, 8), min_visibility=0.0)(tiles[0], tiles[1:])
    assert target.labels.tolist() == [3]
    assert (image == 3).all()


def test_the_point_and_the_scale_are_drawn_from_their_ranges():
    torch.manual_seed(0)
    rows, columns, shown = [], [], []
    for _ in range(300):
        tiles = [solid(v, (64, 64)) for v in (1, 2, 3, 4)]
        image, _ = Mosaic((64, 64), min_scale=1.0, max_scale=1.0, max_shift=0)(tiles[0], tiles[1:])
        rows.append(int((image[0, :, 0] < 3).sum()))
        columns.append(int((image[0, 0] % 2 == 1).sum()))
        small = Mosaic((64, 64), min_scale=0.25, max_scale=0.5)(tiles[0], tiles[1:])[0]
        shown.append((small != 114).float().mean().item())
    for drawn in (rows, columns):
        assert min(drawn) < 4
        assert max(drawn) > 60
        assert 28 < np.mean(drawn) < 36
    assert min(shown) < 0.4  # four quarters squared are 0.25 of the area
    assert max(shown) > 0.7


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.tuples(*(planted_pairs(label) for label in range(4))),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    seed=st.integers(0, 999),
)
def test_mosaic_boxes_and_masks_stay_on_their_pixels(pairs, size, seed):
    torch.manual_seed(seed)
    image, target = Mosaic(size, min_scale=0.3)(pairs[0], pairs[1:])
    assert target.image_size == size
    smallest = min(min(pair[1].image_size) for pair in pairs)
    check_on_pixels(image, target, zoom=2 * 50 / smallest)


def test_masks_drawn_beyond_their_image_do_not_reach_into_another(monkeypatch):
    draws(monkeypatch, mosaic, 1.0, 0.0, 0.0, 0.0, 0.0)
    tiles = [solid(value) for value in (1, 2, 3, 4)]
    tiles[0][1].masks.segmentations[0] = [np.array([[4.0, 4], [12, 4], [12, 12], [4, 12]])]
    _, target = Mosaic((8, 8), min_visibility=0.0)(tiles[0], tiles[1:])
    inside = np.zeros((8, 8))
    inside[:4, :4] = 1  # the lower right half of the first image, up to the point
    assert np.array_equal(rle.decode(instance_rles(target)[0]), inside)


# --- MixUp ---------------------------------------------------------------------------------------


def test_a_mixup_worked_by_hand(monkeypatch):
    """A 4 x 8 partner in a frame of 8 x 8 is 4 x 8; at factor 1/2 it is 2 x 4 in one of 4 x 4."""
    draws(monkeypatch, mixup, 0.5)
    monkeypatch.setattr(mixup, "happens", lambda p: True)  # mirrored
    partner = planted((4, 8), (0, 0, 4, 4), label=1)
    image, target = MixUp(fill=20)(planted((8, 8), (2, 3, 6, 8)), [partner])
    assert target.labels.tolist() == [0, 1]
    assert target.boxes.tolist() == [[2, 3, 6, 8], [2, 0, 4, 2]]
    red, green, blue = image.tolist()
    # 255 // 2 = 127; black and fill are 10; (255 + 20) // 2 = 137.
    assert red[0] == [0, 0, 0, 0, 10, 10, 10, 10]
    assert red[3] == [10, 10, 137, 137, 137, 137, 10, 10]
    assert green[0] == [0, 0, 127, 127, 10, 10, 10, 10]
    assert green[2] == [10] * 8
    assert blue[1] == [0, 0, 0, 0, 10, 10, 10, 10]
    shown = np.zeros((8, 8))
    shown[:2, 2:4] = 1
    assert np.array_equal(rle.decode(instance_rles(target)[1]), shown)


@settings(max_examples=60, deadline=None)
@given(base=planted_pairs(0), partner=planted_pairs(1), seed=st.integers(0, 999))
def test_mixup_boxes_and_masks_stay_on_their_pixels(base, partner, seed):
    torch.manual_seed(seed)
    image, target = MixUp()(base, [partner])
    assert target.image_size == base[1].image_size
    if len(target) == 1:  # nothing of the partner was left
        assert image is base[0]
        return
    # Half of a colour and half of black or gray: red is the base's alone, green the partner's.
    zoom = 1.5 * 60 / min(partner[1].image_size)
    check_on_pixels(image, target, zoom, lambda image, label: (image[label] >= 119).numpy())


def test_a_large_partner_is_cut_anywhere():
    torch.manual_seed(0)
    base, partner = solid(0, (20, 20)), planted((40, 40), (18, 18, 22, 22))
    corners = set()
    for _ in range(100):
        _, target = MixUp(min_scale=1.5, max_scale=1.5)(base, [partner])
        corners.add(tuple(target.boxes[1, :2].tolist()))
    # The partner is 30 x 30 and its object at 13.5: cut by 0..10, it is at 3.5..13.5.
    assert {x for x, _ in corners} == {y for _, y in corners} == {i + 3.5 for i in range(11)}


def test_nothing_is_mixed_with_what_has_no_objects():
    bare = (tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), Instances.empty((8, 8)))
    full = solid(1)
    assert MixUp()(bare, [full]) is bare
    assert MixUp()(full, [bare]) is full


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [Mosaic((60, 50)), MixUp()], ids=["mosaic", "mixup"])
@pytest.mark.parametrize("count", [0, 1500])
def test_no_object_and_thousands(mix, count):
    image, target = mix(many(count), [many(count)] * mix.num_partners)
    assert tuple(image.shape) == (3, *target.image_size)
    assert image.dtype == torch.uint8
    assert len(target) == len(target.masks) == len(target.labels)
    assert (count == 0) == (len(target) == 0)


@pytest.mark.parametrize("mix", [Mosaic((60, 50)), MixUp()], ids=["mosaic", "mixup"])
def test_targets_without_masks(mix):
    pair = planted((30, 40), (3, 4, 30, 20))
    pair[1].masks = None
    _, target = mix(pair, [pair] * mix.num_partners)
    assert target.masks is None
    assert len(target) > 0


def test_targets_become_one():
    """A polygon that was moved, run lengths that were mirrored, and pixels."""
    first = planted((4, 6), (0, 0, 2, 2), 3)[1].transformed(AxisTransform.crop(-1, -1), (4, 6))
    second = planted((4, 6), (0, 0, 2, 2), 1, as_rle=True, crowd=True)[1]
    second = second.transformed(AxisTransform.hflip(6), (4, 6))
    third = Instances(
        (4, 6),
        torch.tensor([[0.0, 3, 6, 4]]),
        torch.tensor([2]),
        masks=BitMasks(torch.arange(24).reshape(1, 4, 6) >= 18),
    )
    joined = concatenate([first, second, third])
    assert joined.labels.tolist() == [3, 1, 2]
    assert joined.crowd.tolist() == [False, True, False]
    assert joined.boxes.tolist() == [[1, 1, 3, 3], [4, 0, 6, 2], [0, 3, 6, 4]]
    assert isinstance(joined.masks, SparseMasks)
    assert isinstance(joined.masks.segmentations[0], list)  # still a polygon
    shown = [rle.decode(code) for code in instance_rles(joined)]
    expected = np.zeros((3, 4, 6))
    expected[0, 1:3, 1:3] = expected[1, :2, 4:] = expected[2, 3] = 1
    assert np.array_equal(shown, expected)


def test_targets_that_cannot_become_one():
    target = planted((4, 6), (0, 0, 2, 2))[1]
    with pytest.raises(ValueError, match=r"one image size, got \[\(4, 6\), \(3, 2\)\]"):
        concatenate([target, target.resized((3, 2))])
    bare = Instances(target.image_size, target.boxes, target.labels)
    with pytest.raises(ValueError, match="some of both"):
        concatenate([target, bare])


def test_only_polygons_that_reach_out_become_run_lengths():
    _, target = planted((4, 6), (1, 1, 6, 4))
    assert isinstance(bounded(target).masks.segmentations[0], list)
    target.masks.segmentations[0] = [np.array([[1.0, 1], [9, 1], [9, 3], [1, 3]])]
    code = bounded(target).masks.segmentations[0]
    expected = np.zeros((4, 6))
    expected[1:3, 1:] = 1
    assert np.array_equal(rle.decode(code), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mosaic((0, 3)), "height, width"),
        (lambda: Mosaic((3, 3), p=2), r"p must be in \[0, 1\], got 2"),
        (lambda: Mosaic((3, 3), min_scale=3), "needs 0 < min_scale <= max_scale, got 3 and 2.0"),
        (lambda: Mosaic((3, 3), max_shift=-1), "max_shift must be"),
        (lambda: Mosaic((3, 3), min_visibility=1.1), "min_visibility must be"),
        (lambda: MixUp(p=-1), "p must be"),
        (lambda: MixUp(min_scale=0), "needs 0 < min_scale"),
        (lambda: MixUp(min_visibility=1.1), "min_visibility must be"),
    ],
)
def test_senseless_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
