"""Transforms against pixels: the image carries each object's mask in a channel of its own."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from instseg.data.transforms import (
    Compose,
    LargeScaleJitter,
    PhotometricDistort,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ResizeShortestEdge,
    drop_degenerate,
)
from instseg.data.transforms.moves import hflip, resize, window
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, SparseMasks

HEIGHT, WIDTH = 200, 260
RECTANGLE = [np.array([[20.0, 30], [90, 30], [90, 110], [20, 110]])]
TWO_PARTS = [
    np.array([[120.0, 20], [180, 40], [150, 60], [190, 100], [110, 90]]),
    np.array([[200.0, 20], [240, 20], [220, 70]]),
]


def ring() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(rows - 140.0, columns - 170.0)
    return ((radius < 50) & (radius > 20)).astype(np.uint8)


def tight_box(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1.0, rows.max() + 1.0]


def scene() -> tuple[tv_tensors.Image, Instances]:
    """A rectangle, a polygon of two parts and a ring by RLE; label k is drawn in channel k."""
    size = (HEIGHT, WIDTH)
    segmentations = [RECTANGLE, TWO_PARTS, rle.encode(ring())]
    dense = np.stack(
        [
            rle.decode(s if isinstance(s, dict) else rle.from_polygons(s, size))
            for s in segmentations
        ]
    )
    target = Instances(
        image_size=size,
        boxes=torch.tensor([tight_box(m) for m in dense], dtype=torch.float32),
        labels=torch.arange(3),
        masks=SparseMasks(segmentations, size, size),
        is_crowd=torch.zeros(3, dtype=torch.bool),
    )
    return tv_tensors.Image(torch.from_numpy(dense * 255)), target


def located(boxes: list[list[float]], crowd: list[bool] | None = None, size=(120, 160)):
    """An image whose first two channels hold each pixel's row and column, and boxes on it."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[0] = torch.arange(size[0], dtype=torch.uint8)[:, None]
    image[1] = torch.arange(size[1], dtype=torch.uint8)
    image[2] = 1
    n = len(boxes)
    target = Instances(
        image_size=size,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        labels=torch.arange(n),
        is_crowd=torch.tensor(crowd or [False] * n, dtype=torch.bool),
    )
    return tv_tensors.Image(image), target


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


GEOMETRY = {
    "resize": Resize((150, 300)),
    "shortest_edge": ResizeShortestEdge([120, 160, 240], max_size=320),
    "flip": RandomHorizontalFlip(1.0),
    "jitter": LargeScaleJitter((220, 240), 0.5, 2.0, fill=0),
    "crop": RandomCrop(0.3, 0.9),
    "chain": v2.Compose([ResizeShortestEdge(160, 320), RandomHorizontalFlip(1.0), RandomCrop()]),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_masks_and_boxes_stay_on_the_pixels_they_describe(name):
    compared = 0
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = Compose([GEOMETRY[name]])(*scene())
        assert tuple(image.shape) == (3, *target.image_size)
        assert target.masks.size == target.image_size
        for label, code, box in zip(
            target.labels.tolist(), instance_rles(target), target.boxes.numpy(), strict=True
        ):
            truth = image[label].numpy() >= 128
            if truth.sum() < 500:  # a sliver, all border
                continue
            compared += 1
            assert iou(truth, rle.decode(code) == 1) > 0.93
            tight = np.array(tight_box(truth))
            assert (box[:2] <= tight[:2] + 1.01).all()
            assert (box[2:] >= tight[2:] - 1.01).all()
            if label == 0:  # of a rectangle any part fills its box
                np.testing.assert_allclose(box, tight, atol=1.01)
    assert compared >= 8


def test_every_transform_moves_the_annotations_where_torchvision_moves_dense_masks():
    image, target = scene()
    dense = tv_tensors.Mask((image > 0).to(torch.uint8))
    boxes = tv_tensors.BoundingBoxes(target.boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))
    ring_only = target[[2]]

    moved_image, moved = hflip(image, ring_only)
    assert torch.equal(moved_image, F.horizontal_flip(image))
    assert np.array_equal(rle.decode(instance_rles(moved)[0]), F.horizontal_flip(dense)[2].numpy())
    assert torch.equal(hflip(image, target)[1].boxes, F.horizontal_flip(boxes).as_subclass(Tensor))

    moved_image, moved = window(image, ring_only, 33, 71, (100, 120))
    assert torch.equal(moved_image, F.crop(image, 71, 33, 100, 120))
    expected = F.crop(dense, 71, 33, 100, 120)[2].numpy()
    assert np.array_equal(rle.decode(instance_rles(moved)[0]), expected)
    expected_boxes = F.crop(boxes, 71, 33, 100, 120).as_subclass(Tensor)
    assert torch.equal(window(image, target, 33, 71, (100, 120))[1].boxes, expected_boxes)

    _, moved = Resize((400, 390))(image, target)
    expected_boxes = F.resize(boxes, [400, 390]).as_subclass(Tensor)
    torch.testing.assert_close(moved.boxes, expected_boxes)
    for code, mask in zip(
        instance_rles(moved),
        F.resize(dense, [400, 390], interpolation=v2.InterpolationMode.NEAREST_EXACT),
        strict=True,
    ):
        assert iou(rle.decode(code) == 1, mask.numpy() == 1) > 0.96


@pytest.mark.parametrize("antialias", [True, False])
def test_an_image_shrinks_to_one_pixel(antialias):
    image, target = located([[0, 0, 3, 5]], size=(5, 3))
    shrunk, moved = resize(image, target, (1, 1), antialias=antialias)
    assert shrunk[:, 0, 0].tolist() == [2, 1, 1]  # the middle row and column
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 0, 1, 1]]))


def test_window_pads_at_the_right_and_bottom():
    image, target = located([[10, 20, 50, 60]])
    padded, moved = window(image, target, 0, 0, (130, 180), fill=7)
    assert torch.equal(padded[:, :120, :160], image)
    assert (padded[:, 120:] == 7).all()
    assert (padded[:, :, 160:] == 7).all()
    assert moved.boxes.tolist() == [[10, 20, 50, 60]]


@pytest.mark.parametrize(
    ("old", "size", "max_size", "new"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 427), 800, 1333, (1199, 800)),  # 640 * 800 / 427 = 1199.06
        ((300, 1000), 800, 1333, (400, 1333)),  # capped: 1000 -> 1333
        ((500, 500), 800, 600, (600, 600)),
        ((200, 101), 50, 1000, (99, 50)),  # 99.0099
        ((101, 202), 25, 1000, (25, 50)),
        ((3, 1000), 10, 100, (1, 100)),  # 0.3 rows are still one
    ],
)
def test_shortest_edge_rule(old, size, max_size, new):
    image, target = located([], size=old)
    moved_image, moved = ResizeShortestEdge(size, max_size)(image, target)
    assert moved.image_size == new == tuple(moved_image.shape[1:])


def test_shortest_edge_rounds_half_up():
    image, target = located([], size=(10, 25))
    assert ResizeShortestEdge(5, 100)(image, target)[1].image_size == (5, 13)  # 12.5, even is 12


def test_multi_scale_draws_every_size():
    transform = ResizeShortestEdge([20, 24, 28], max_size=1000)
    image, target = located([], size=(10, 10))
    drawn = [transform(image, target)[1].image_size[0] for _ in range(60)]
    assert {20, 24, 28} == set(drawn)
    assert all(drawn.count(size) > 8 for size in (20, 24, 28))


def test_flip_probability():
    image, target = located([[10, 20, 50, 60]])
    flip = RandomHorizontalFlip(0.25)
    flipped = sum(flip(image, target)[1].boxes[0, 0].item() == 110 for _ in range(400))
    assert 60 < flipped < 140
    assert RandomHorizontalFlip(0.0)(image, target)[1].boxes[0, 0] == 10


def test_large_scale_jitter_scales_by_the_range_and_pads_gray():
    transform = LargeScaleJitter((100, 100), min_scale=0.1, max_scale=2.0)
    image = tv_tensors.Image(torch.zeros(3, 60, 90, dtype=torch.uint8))
    box = torch.tensor([[0.0, 0, 90, 60]])
    target = Instances((60, 90), box, torch.zeros(1, dtype=torch.int64))
    widths = []
    for _ in range(200):
        moved_image, moved = transform(image, target)
        assert tuple(moved_image.shape) == (3, 100, 100)
        x1, y1, x2, y2 = (round(v) for v in moved.boxes[0].tolist())
        # The whole image is the object: outside its box there is nothing but padding.
        assert (x1, y1) == (0, 0)
        assert (moved_image[:, :y2, :x2] == 0).all()
        assert (moved_image[:, y2:] == 128).all()
        assert (moved_image[:, :, x2:] == 128).all()
        widths.append(x2)
    assert min(widths) < 20  # the fit is 100 wide; a tenth of it is the least
    assert min(widths) >= 10
    # Half of 0.1..2.0 above 1.05: about half of the draws fill the width.
    assert 0.35 < np.mean([w == 100 for w in widths]) < 0.65


def test_large_scale_jitter_crops_everywhere():
    transform = LargeScaleJitter((60, 80), min_scale=2.0, max_scale=2.0)
    image, target = located([], size=(60, 80))
    corners = [tuple(transform(image, target)[0][:2, 0, 0].tolist()) for _ in range(200)]
    rows, columns = zip(*corners, strict=True)
    # At scale 2 the window's corner lies in 0..60 x 0..80, in source pixels 0..30 x 0..40.
    assert min(rows) <= 2
    assert 27 <= max(rows) <= 31
    assert min(columns) <= 2
    assert 37 <= max(columns) <= 41


def crop_window(image: Tensor) -> tuple[int, int, int, int]:
    top, left = int(image[0, 0, 0]), int(image[1, 0, 0])
    return left, top, left + image.shape[2], top + image.shape[1]


def visible_share(box, frame) -> float:
    width = max(0.0, min(box[2], frame[2]) - max(box[0], frame[0]))
    height = max(0.0, min(box[3], frame[3]) - max(box[1], frame[1]))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


BOXES = [
    [0.0, 0, 30, 40],
    [10.5, 20.25, 14.75, 90],
    [60, 50, 150, 118],
    [155, 115, 160, 120],
    [2, 3, 158, 119],
]


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [3], [4], [1, 3]])
def test_crop_keeps_an_object_and_removes_what_is_mostly_cut_away(chosen):
    boxes = [BOXES[i] for i in chosen]
    transform = RandomCrop(0.2, 0.8, min_visibility=0.4)
    removed = 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = transform(*located(boxes))
        frame = crop_window(image)
        shares = [visible_share(box, frame) for box in boxes]
        assert max(shares) >= 0.4
        assert target.labels.tolist() == [i for i, share in enumerate(shares) if share >= 0.4]
        for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True):
            x1, y1, x2, y2 = boxes[label]
            left, top, right, bottom = frame
            expected = [max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)]
            assert box == [v - o for v, o in zip(expected, [left, top] * 2, strict=True)]
        removed += len(boxes) - len(target)
    assert (removed > 0) == (len(boxes) > 1)


def test_crop_that_can_holds_the_drawn_object_whole():
    transform = RandomCrop(0.5, 0.5)
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = transform(*located([[100, 20, 130, 60]]))
        assert tuple(image.shape) == (3, 60, 80)
        x1, y1, x2, y2 = target.boxes[0].tolist()
        assert (x2 - x1, y2 - y1) == (30, 40)


def test_crop_keeps_the_drawn_object_that_whole_pixels_cut_a_hair_off():
    # 30.9 wide, in a window of 31 that would have to start between 10.5 and 10.6.
    transform = RandomCrop(0.1, 0.1, min_visibility=1.0)
    image, target = transform(*located([[10.6, 10.6, 41.5, 41.5]]))
    assert crop_window(image) == (11, 11, 42, 42)
    torch.testing.assert_close(target.boxes, torch.tensor([[0.0, 0, 30.5, 30.5]]))


def test_crop_removes_masks_and_labels_with_their_boxes():
    lost = 0
    for seed in range(20):
        torch.manual_seed(seed)
        _, target = RandomCrop(0.2, 0.5)(*scene())
        assert len(target) == len(target.masks) == len(target.labels) == len(target.crowd)
        lost += 3 - len(target)
        for label, segmentation in zip(
            target.labels.tolist(), target.masks.segmentations, strict=True
        ):
            assert isinstance(segmentation, dict) == (label == 2)
            assert label == 2 or len(segmentation) == label + 1
    assert lost > 0


def test_crop_keeps_any_visible_part_of_a_crowd_and_is_not_drawn_to_it():
    crowd, person = [0.0, 0, 160, 120], [100, 80, 120, 100]
    seen = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = RandomCrop(0.2, 0.3, min_visibility=0.5)(
            *located([crowd, person], [True, False])
        )
        assert target.labels.tolist() == [0, 1]  # 9 % of the crowd at most, and yet kept
        assert target.crowd.tolist() == [True, False]
        seen += visible_share(crowd, crop_window(image)) < 0.5
    assert seen == 30


@pytest.mark.parametrize("boxes", [[], [[0.0, 0, 160, 120]]])
def test_crop_without_objects_goes_anywhere(boxes):
    corners = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = RandomCrop(0.5, 0.5)(*located(boxes, [True] * len(boxes)))
        assert target.image_size == (60, 80)
        assert len(target) == len(boxes)
        corners.add(crop_window(image)[:2])
    assert len(corners) > 50
    assert max(left for left, _ in corners) > 70
    assert max(top for _, top in corners) > 50


def test_drop_degenerate_wants_both_sides():
    _, target = located([[0, 0, 10, 10], [5, 5, 5.5, 50], [5, 5, 50, 5.99], [1, 1, 2, 2]])
    assert drop_degenerate(target).labels.tolist() == [0, 3]
    assert drop_degenerate(target, 0.5).labels.tolist() == [0, 1, 2, 3]


def test_compose_drops_what_shrinks_away():
    _, target = Compose([Resize((12, 16))])(*located([[0, 0, 9, 50], [0, 0, 10, 50]]))
    assert target.labels.tolist() == [1]


def test_compose_of_nothing_changes_nothing():
    image, target = scene()
    same_image, same = Compose([])(image, target)
    assert torch.equal(same_image, image)
    assert torch.equal(same.boxes, target.boxes)


def test_colour_transforms_leave_the_objects_alone():
    image, target = scene()
    image = tv_tensors.Image(torch.randint(0, 256, image.shape, dtype=torch.uint8))
    chain = Compose([v2.ColorJitter(0.5, 0.5), v2.RandomApply([v2.GaussianBlur(3)], p=1.0)])
    changed, same = chain(image, target)
    assert not torch.equal(changed, image)
    assert torch.equal(same.boxes, target.boxes)
    distorted = [PhotometricDistort(p=1.0)(image, target)[0] for _ in range(2)]
    assert all(d.dtype == torch.uint8 and not torch.equal(d, image) for d in distorted)


@pytest.mark.parametrize(
    "foreign",
    [
        v2.Resize(10),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(10),
        v2.RandAugment(),
        v2.Compose([v2.ColorJitter(), v2.RandomCrop(10)]),
        v2.RandomApply([v2.RandomChoice([v2.RandomAffine(3), v2.ColorJitter()])]),
    ],
    ids=lambda t: type(t).__name__,
)
def test_compose_refuses_torchvision_geometry(foreign):
    with pytest.raises(TypeError, match=r"move the image but not.*instseg\.data\.transforms"):
        Compose([ResizeShortestEdge(10, 20), foreign])


def test_compose_refuses_what_is_no_v2_transform():
    with pytest.raises(TypeError, match="Identity is not a transform of torchvision"):
        Compose([torch.nn.Identity()])


def test_compose_notices_an_image_that_left_its_target():
    shrink = v2.Lambda(lambda image: image[:, ::2], tv_tensors.Image)
    with pytest.raises(ValueError, match=r"Lambda.*60x160 with a target for 120x160"):
        Compose([shrink])(*located([]))
    with pytest.raises(ValueError, match=r"ToDtype.*torch\.float32; samples keep their dtype"):
        Compose([v2.ToDtype(torch.float32)])(*located([]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize((0, 4)), "height, width"),
        (lambda: Resize((4,)), "height, width"),
        (lambda: ResizeShortestEdge([], 10), "at least 1"),
        (lambda: ResizeShortestEdge([0, 3], 10), "at least 1"),
        (lambda: ResizeShortestEdge(3, 0), "at least 1"),
        (lambda: RandomHorizontalFlip(1.5), r"p must be in \[0, 1\]"),
        (lambda: LargeScaleJitter((4, 4), 0.0, 1.0), "0 < min_scale"),
        (lambda: LargeScaleJitter((4, 4), 2.0, 1.0), "0 < min_scale"),
        (lambda: RandomCrop(0.5, 1.5), "0 < min_scale"),
        (lambda: RandomCrop(min_visibility=math.nan), "min_visibility"),
    ],
)
def test_senseless_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
