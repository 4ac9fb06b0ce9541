"""Objects out of semantic maps: worked cases and plain versions of the algorithms."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.models.semantic.instances import (
    ConnectedComponents,
    DistanceWatershed,
    InstanceFinder,
    MarkerWatershed,
)
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, SemanticMap


def binary(foreground: np.ndarray) -> SemanticMap:
    """Two exclusive classes from the foreground's probability ``[H, W]``."""
    p = torch.from_numpy(np.asarray(foreground, dtype=np.float32))
    return SemanticMap.exclusive(torch.stack([1 - p, p]))


def pixels(instances: Instances) -> list[np.ndarray]:
    return [rle.decode(code).astype(bool) for code in instance_rles(instances)]


def discs(*circles: tuple[int, int, int], size: tuple[int, int] = (40, 60)) -> np.ndarray:
    y, x = np.indices(size)
    inside = [(y - cy) ** 2 + (x - cx) ** 2 <= r**2 for cy, cx, r in circles]
    return np.any(inside, axis=0)


def neighbours(y: int, x: int, shape: tuple[int, int], corners: bool) -> Iterator[tuple[int, int]]:
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inside = 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]
            if (dy, dx) != (0, 0) and inside and (corners or 0 in (dy, dx)):
                yield y + dy, x + dx


def plain_components(mask: np.ndarray, corners: bool) -> list[frozenset[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    components = []
    while left:
        stack = [left.pop()]
        component = set(stack)
        while stack:
            near = set(neighbours(*stack.pop(), mask.shape, corners)) & left
            left -= near
            component |= near
            stack += near
        components.append(frozenset(component))
    return components


def as_sets(instances: Instances) -> set[frozenset[tuple[int, int]]]:
    return {frozenset((int(y), int(x)) for y, x in np.argwhere(m)) for m in pixels(instances)}


MAP = [
    [0.9, 0.7, 0.0, 0.0, 0.6],
    [0.8, 0.1, 0.0, 0.6, 0.2],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 1.0, 1.0, 0.0, 0.0],
]


def test_components_by_hand() -> None:
    """The first object's score is (0.9 + 0.7 + 0.8) / 3; the two at the right touch at a corner."""
    found = ConnectedComponents()(binary(MAP))
    assert found.boxes.tolist() == [[1, 3, 3, 4], [0, 0, 2, 2], [4, 0, 5, 1], [3, 1, 4, 2]]
    assert found.scores.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.6])
    assert found.labels.tolist() == [0, 0, 0, 0]
    assert found.image_size == (4, 5)
    assert found.boxes.dtype == torch.float32
    found = ConnectedComponents(connectivity=2)(binary(MAP))
    assert found.boxes.tolist() == [[1, 3, 3, 4], [0, 0, 2, 2], [3, 0, 5, 2]]


def test_threshold_area_and_number() -> None:
    assert len(ConnectedComponents(min_area=2)(binary(MAP))) == 2
    assert len(ConnectedComponents(min_area=4)(binary(MAP))) == 0
    assert ConnectedComponents(max_detections=2)(binary(MAP)).scores.tolist() == pytest.approx(
        [1.0, 0.8]
    )
    strict = ConnectedComponents(threshold=0.75)(binary(MAP))
    assert strict.boxes.tolist() == [[1, 3, 3, 4], [0, 0, 1, 2]]
    assert strict.scores.tolist() == pytest.approx([1.0, 0.85])
    # 0.15 takes the pixel of 0.2, which joins both objects at the right.
    assert len(ConnectedComponents(threshold=0.15)(binary(MAP))) == 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2]))
def test_components_are_those_of_a_plain_search(
    seed: int, height: int, width: int, connectivity: int
) -> None:
    scores = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    found = ConnectedComponents(threshold=0.5, connectivity=connectivity)(binary(scores))
    expected = plain_components(scores >= 0.5, connectivity == 2)
    assert as_sets(found) == set(expected)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    for mask, score, box in zip(pixels(found), found.scores, found.boxes, strict=True):
        assert float(score) == pytest.approx(float(scores[mask].mean()), abs=1e-6)
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_classes_are_separated_one_by_one() -> None:
    """Objects of two classes touch; at the last pixel no class alone beats the background."""
    scores = torch.tensor(
        [[[0.1, 0.2, 0.1, 0.4]], [[0.9, 0.7, 0.0, 0.3]], [[0.0, 0.1, 0.9, 0.3]]],
    )
    semantic = SemanticMap.exclusive(scores)
    found = ConnectedComponents()(semantic)
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[2, 0, 3, 1], [0, 0, 2, 1]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    # Together they reach one half there: then the better one has the pixel (the first of a tie).
    found = ConnectedComponents(threshold=0.5)(semantic)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.boxes.tolist()[2] == [3, 0, 4, 1]


def test_unknown_pixels_are_no_object() -> None:
    semantic = binary(np.ones((2, 3)))
    semantic.labels[:, 1] = 255
    assert len(ConnectedComponents()(semantic)) == 2


def test_overlapping_classes() -> None:
    scores = torch.tensor([[[0.9, 0.9, 0.1]], [[0.2, 0.8, 0.8]]])
    found = ConnectedComponents(layout="multilabel")(SemanticMap.multi_label(scores))
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[0, 0, 2, 1], [1, 0, 3, 1]]
    found = ConnectedComponents(layout="multilabel")(SemanticMap.multi_label(scores, 0.15))
    assert found.boxes.tolist() == [[0, 0, 2, 1], [0, 0, 3, 1]]
    found = ConnectedComponents(layout="multilabel", threshold=0.85)(
        SemanticMap.multi_label(scores)
    )
    assert found.labels.tolist() == [0]


def test_holes_are_filled_by_the_other_connectivity() -> None:
    """A diamond's inside is enclosed where corners touch, and open to the outside otherwise."""
    diamond = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    assert len(ConnectedComponents(fill_holes=True)(binary(diamond))) == 4
    (mask,) = pixels(ConnectedComponents(fill_holes=True, connectivity=2)(binary(diamond)))
    assert mask.tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    ring = np.ones((3, 3))
    ring[1, 1] = 0
    (mask,) = pixels(ConnectedComponents(fill_holes=True)(binary(ring)))
    assert mask.all()
    found = ConnectedComponents(fill_holes=True)(binary(ring))
    assert found.scores.tolist() == pytest.approx([8 / 9])
    (mask,) = pixels(ConnectedComponents()(binary(ring)))
    assert not mask[1, 1]


@pytest.mark.parametrize("smoothing", [0, 1])
def test_the_distance_watershed_parts_touching_discs(smoothing: float) -> None:
    circles = [(20, 18, 10), (20, 34, 10)]
    mask = discs(*circles)
    assert len(ConnectedComponents()(binary(mask))) == 1
    found = DistanceWatershed(h=1, smoothing=smoothing)(binary(mask))
    assert len(found) == 2
    parts = sorted(pixels(found), key=lambda part: np.nonzero(part)[1].min())
    assert np.array_equal(parts[0] | parts[1], mask)
    assert not (parts[0] & parts[1]).any()
    # The cut is the waist, x = 26, but for a pixel.
    x = np.indices(mask.shape)[1]
    assert np.array_equal(parts[0] & (x < 25), mask & (x < 25))
    assert np.array_equal(parts[1] & (x > 27), mask & (x > 27))


def test_h_is_the_depth_of_the_waist() -> None:
    """Radius 10, centres 16 apart: half the waist is 6, so the distance falls by about 4."""
    mask = discs((20, 18, 10), (20, 34, 10))
    counts = {h: len(DistanceWatershed(h=h)(binary(mask))) for h in (0.1, 3, 5)}
    assert counts[3] == 2
    assert counts[5] == 1
    # Summits of one height with a dip of less than h between them are one.
    bar = np.zeros((7, 40))
    bar[1:6, 2:38] = 1
    bar[1, 20] = 0
    assert len(DistanceWatershed(h=1.5)(binary(bar))) == 1
    assert len(DistanceWatershed(h=0.5)(binary(bar))) == 2


def test_small_objects_are_kept_whatever_h() -> None:
    mask = discs((20, 18, 10), (20, 34, 10), (5, 5, 1), (5, 50, 0))
    found = DistanceWatershed(h=3)(binary(mask))
    assert len(found) == 4
    assert sum(part.sum() for part in pixels(found)) == mask.sum()
    assert len(DistanceWatershed(h=100)(binary(mask))) == 3


def test_every_component_of_a_random_map_is_used_up() -> None:
    rng = np.random.default_rng(1)
    for connectivity in (1, 2):
        mask = rng.random((30, 30)) > 0.35
        found = DistanceWatershed(h=0.5, connectivity=connectivity)(binary(mask))
        assert np.array_equal(np.sum(pixels(found), axis=0), mask)
        for part in pixels(found):
            assert len(plain_components(part, connectivity == 2)) == 1
        assert len(found) >= len(plain_components(mask, connectivity == 2))


def plain_marker_watershed(
    inside: np.ndarray, extent: np.ndarray, marker: float, corners: bool
) -> set[frozenset[tuple[int, int]]]:
    """Meyer's flooding: always from the pixel of the highest inside among those at hand."""
    owner, queue = {}, []
    for number, component in enumerate(plain_components(extent & (inside >= marker), corners)):
        for place in component:
            owner[place] = number
            heapq.heappush(queue, (-inside[place], place))
    while queue:
        _, place = heapq.heappop(queue)
        for other in neighbours(*place, inside.shape, corners):
            if extent[other] and other not in owner:
                owner[other] = owner[place]
                heapq.heappush(queue, (-inside[other], other))
    numbers = set(owner.values())
    return {frozenset(p for p, n in owner.items() if n == number) for number in numbers}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2]))
def test_the_marker_watershed_is_that_of_a_plain_flood(
    seed: int, height: int, width: int, connectivity: int
) -> None:
    rng = np.random.default_rng(seed)
    # No two pixels are alike, so that no rule for ties is needed.
    ranks = rng.permutation(height * width).reshape(height, width)
    scores = ((ranks + 1) / (height * width + 1)).astype(np.float32)
    finder = MarkerWatershed(threshold=0.3, marker_threshold=0.8, connectivity=connectivity)
    expected = plain_marker_watershed(scores, scores >= 0.3, 0.8, connectivity == 2)
    assert as_sets(finder(binary(scores))) == expected


def test_markers_by_hand() -> None:
    row = [[0.9, 0.8, 0.6, 0.55, 0.7, 0.95, 0.2, 0.6]]
    found = MarkerWatershed(marker_threshold=0.85)(binary(row))
    # From 0.7 the flood sees 0.55 before it does so from 0.6.
    assert as_sets(found) == {
        frozenset({(0, 0), (0, 1), (0, 2)}),
        frozenset({(0, 3), (0, 4), (0, 5)}),
    }
    # The last pixel is foreground, but no marker reaches it.
    assert not any(mask[0, 7] for mask in pixels(found))
    assert len(MarkerWatershed(marker_threshold=0.85, min_marker_area=2)(binary(row))) == 0
    assert len(MarkerWatershed(marker_threshold=0.75, min_marker_area=2)(binary(row))) == 1


def test_smoothing_joins_markers_that_noise_parts() -> None:
    row = np.array([[0.9, 0.9, 0.9, 0.68, 0.9, 0.9, 0.9]] * 3)
    assert len(MarkerWatershed(marker_threshold=0.75)(binary(row))) == 2
    assert len(MarkerWatershed(marker_threshold=0.75, smoothing=1.0)(binary(row))) == 1


def border_map() -> SemanticMap:
    """Two objects of 4 x 5 side by side, each with a border of one pixel."""
    classes = np.zeros((6, 12), dtype=np.int64)
    for left in (1, 6):
        classes[1:5, left : left + 5] = 2
        classes[2:4, left + 1 : left + 4] = 1
    scores = np.full((3, *classes.shape), 0.1, dtype=np.float32)
    np.put_along_axis(scores, classes[None], 0.8, axis=0)
    return SemanticMap.exclusive(torch.from_numpy(scores))


def test_the_border_parts_touching_objects() -> None:
    """Inside less border is 0.7 within, so that 0.6 marks it; each object has all of its border."""
    found = MarkerWatershed(layout="border", marker_threshold=0.6)(border_map())
    assert sorted(found.boxes.tolist()) == [[1, 1, 6, 5], [6, 1, 11, 5]]
    assert found.labels.tolist() == [0, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.9])
    assert len(ConnectedComponents(layout="border")(border_map())) == 1
    assert len(MarkerWatershed(layout="border", marker_threshold=0.75)(border_map())) == 0


FINDERS: list[InstanceFinder] = [ConnectedComponents(), DistanceWatershed(), MarkerWatershed()]


@pytest.mark.parametrize("finder", FINDERS, ids=lambda f: type(f).__name__)
def test_maps_without_objects_and_maps_that_are_one(finder: InstanceFinder) -> None:
    found = finder(binary(np.zeros((5, 7))))
    assert len(found) == 0
    assert found.image_size == (5, 7)
    assert found.boxes.shape == (0, 4)
    assert found.scores is not None
    assert found.masks is not None
    assert found.labels.dtype == torch.int64
    assert instance_rles(found) == []
    found = finder(binary(np.ones((5, 7))))
    assert found.boxes.tolist() == [[0, 0, 7, 5]]
    assert found.scores.tolist() == [1.0]
    assert pixels(found)[0].all()


@pytest.mark.parametrize("finder", FINDERS, ids=lambda f: type(f).__name__)
def test_half_precision_and_gradients_are_no_obstacle(finder: InstanceFinder) -> None:
    p = torch.tensor(MAP, requires_grad=True)
    semantic = SemanticMap.exclusive(torch.stack([1 - p, p]).half())
    assert len(finder(semantic)) == len(finder(binary(MAP)))
    assert not finder(semantic).scores.requires_grad


def test_hundreds_of_objects() -> None:
    """A checkered sheet of 20 x 20 squares, 10 x 10 pixels each, of known places."""
    sheet = np.zeros((200, 200))
    for y in range(0, 200, 10):
        for x in range(0, 200, 10):
            sheet[y + 2 : y + 8, x + 2 : x + 8] = 1
    found = DistanceWatershed(h=0.5)(binary(sheet))
    expected = [[x + 2, y + 2, x + 8, y + 8] for y in range(0, 200, 10) for x in range(0, 200, 10)]
    assert sorted(found.boxes.tolist()) == sorted(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"layout": "binary"},
            "layout must be one of multiclass, multilabel, border, got 'binary'",
        ),
        ({"threshold": 1.0}, "threshold must be None or between 0 and 1, got 1.0"),
        ({"min_area": 0}, "min_area must be at least 1, got 0"),
        ({"connectivity": 4}, "connectivity must be 1 .* got 4"),
        ({"max_detections": 0}, "max_detections must be at least 1, got 0"),
        ({"marker_threshold": 1.5}, "marker_threshold must be between 0 and 1, got 1.5"),
        ({"min_marker_area": 0}, "min_marker_area must be at least 1, got 0"),
        ({"smoothing": -1}, "smoothing must be at least 0, got -1"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MarkerWatershed(**arguments)


def test_wrong_h() -> None:
    with pytest.raises(ValueError, match="h must be greater than 0, got 0"):
        DistanceWatershed(h=0)


def test_maps_that_do_not_fit() -> None:
    truth = SemanticMap(torch.zeros(3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no scores"):
        ConnectedComponents()(truth)
    overlapping = SemanticMap.multi_label(torch.rand(3, 4, 4))
    for layout in ("multiclass", "border"):
        with pytest.raises(ValueError, match=f"layout '{layout}' does not fit .* 3 overlapping"):
            ConnectedComponents(layout=layout)(overlapping)
    with pytest.raises(ValueError, match="does not fit a map of 2 exclusive classes"):
        ConnectedComponents(layout="multilabel")(binary(MAP))
    with pytest.raises(ValueError, match="does not fit a map of 2 exclusive classes"):
        ConnectedComponents(layout="border")(binary(MAP))
