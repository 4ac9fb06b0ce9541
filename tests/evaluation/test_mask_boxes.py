"""Masks decoded within their boxes, against pycocotools' whole ones; what is too large for it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from instseg.evaluation.checks import boundary_defect
from instseg.evaluation.coco import evaluate_results
from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.mask_boxes import PixelBox, box_of_runs, decode_within_box
from instseg.evaluation.results import ResultsError
from instseg.ops import rle
from instseg.structures.geometry import MAX_PIXELS
from instseg.structures.masks import RLE

HEIGHT, WIDTH = 65536, 32767
"""An image of little less than 2^31 pixels."""


def compressed(counts: list[int], size: tuple[int, int]) -> dict[str, Any]:
    return dict(rle.from_uncompressed(counts, size))


def tight(mask: np.ndarray) -> PixelBox:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return PixelBox(0, 0, 0, 0)
    return PixelBox(rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1)


def check(code: RLE) -> None:
    whole = rle.decode(code)
    box, pixels = decode_within_box(code)
    assert box == tight(whole) == box_of_runs(rle.decode_counts(code["counts"]), code["size"][0])
    assert pixels.dtype == np.uint8
    bottom, right = box.top + box.height, box.left + box.width
    assert (pixels == whole[box.top : bottom, box.left : right]).all()


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_random_masks(density: float) -> None:
    rng = np.random.default_rng(round(100 * density))
    for _ in range(40):
        mask = np.zeros(rng.integers(1, 30, 2), np.bool_)
        y, x = (rng.integers(side) for side in mask.shape)
        part = mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)]
        part[:] = rng.random(part.shape) < density
        check(rle.encode(mask))


@pytest.mark.parametrize(
    "counts",
    [
        [5, 3, 12],  # over the end of a column
        [0, 20],
        [20],
        [4, 8, 8],  # two whole columns
        [9, 2, 0, 1, 8],  # runs that touch
        [3, 0, 6, 2, 9],  # an empty run before the others, and outside of their box
        [0, 0, 9, 2, 9],
        [9, 2, 9, 0],
        [20, 0],
    ],
)
def test_runs_of_all_kinds(counts: list[int]) -> None:
    check(rle.from_uncompressed(counts, (4, 5)))


def test_memory_goes_by_the_box() -> None:
    rows = [HEIGHT * 7 + 11, 5, HEIGHT - 4, 4]
    code = rle.from_uncompressed([*rows, HEIGHT * WIDTH - sum(rows)], (HEIGHT, WIDTH))
    tracemalloc.start()
    box, pixels = decode_within_box(code)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert box == PixelBox(11, 7, 5, 2)
    assert pixels.tolist() == [[1, 0], [1, 1], [1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize(("columns", "refused"), [(2048, False), (2049, True)])
def test_the_largest_box(columns: int, refused: bool) -> None:
    """65536 x 2048 is the bound, wherever it lies in the image."""
    assert HEIGHT * 2048 == MAX_PIXELS
    rest = (WIDTH - columns) * HEIGHT
    code = compressed([99 * HEIGHT, columns * HEIGHT, rest - 99 * HEIGHT], (HEIGHT, WIDTH))
    corners = [[0, 0, columns - 1, 0, columns - 1, HEIGHT]]
    for segmentation in (code, corners):
        defect = boundary_defect(segmentation, (HEIGHT, WIDTH))
        assert (defect is not None) == refused
        if defect is not None:
            assert f"the mask spans {HEIGHT} x " in defect
            assert "cut the image into tiles, or leave out the IoU type 'boundary'" in defect


def test_two_pixels_far_apart() -> None:
    """What a mask's box spans counts, not how many pixels it has."""
    code = compressed([0, 1, HEIGHT * WIDTH - 2, 1], (HEIGHT, WIDTH))
    assert "spans 65536 x 32767 pixels" in str(boundary_defect(code, (HEIGHT, WIDTH)))
    assert boundary_defect(code, (1, 2)) is None  # no box of a small image is looked at


def sets(truth: Any, found: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An annotation and a detection on the huge image."""
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 9}
    return {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [annotation | {"iscrowd": 0, "segmentation": truth}],
    }, [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": found}]


def test_records_of_huge_masks_are_refused() -> None:
    small = compressed([HEIGHT * 7, 9, HEIGHT * (WIDTH - 7) - 9], (HEIGHT, WIDTH))
    huge = compressed([0, HEIGHT * WIDTH], (HEIGHT, WIDTH))
    with pytest.raises(GroundTruthError, match=r"annotation 5: .*the mask spans 65536 x 32767"):
        evaluate_results(*sets(huge, small), ["boundary"])
    with pytest.raises(ResultsError, match=r"record 0: .*the mask spans 65536 x 32767"):
        evaluate_results(*sets(small, huge), ["bbox", "boundary"])
    # Masks' IoU needs no pixels.
    assert evaluate_results(*sets(huge, huge), ["segm"])["segm"].stats["AP"] == pytest.approx(1)


def test_small_masks_of_a_huge_image_are_scored() -> None:
    """All of them lies near their contours, so that boundary IoU is mask IoU: 9 / 12."""
    truth = compressed([HEIGHT * 7, 9, HEIGHT * (WIDTH - 7) - 9], (HEIGHT, WIDTH))
    found = compressed([HEIGHT * 7, 12, HEIGHT * (WIDTH - 7) - 12], (HEIGHT, WIDTH))
    scores = evaluate_results(*sets(truth, found), ["segm", "boundary"])
    assert scores["boundary"].stats == scores["segm"].stats
    assert scores["boundary"].stats["AP"] == pytest.approx(0.6)  # thresholds 0.5 to 0.75
