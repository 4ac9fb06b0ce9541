import numpy as np
import pytest
from pycocotools import mask as coco_mask

from instseg.evaluation.checks import box_defect, is_finite, is_int, polygons_defect, rle_defect


def random_codes(count: int) -> list[tuple[np.ndarray, dict]]:
    rng = np.random.default_rng(3)
    masks = []
    for _ in range(count):
        size = rng.integers(1, 90, size=2)
        masks.append((rng.random(size) < rng.choice([0.0, 0.01, 0.5, 0.99, 1.0])).astype(np.uint8))
    return [(m, coco_mask.encode(np.asfortranarray(m))) for m in masks]


def test_every_code_that_pycocotools_writes_passes_and_no_prefix_of_it_does() -> None:
    for mask, code in random_codes(60):
        assert rle_defect(code, mask.shape) is None
        assert rle_defect({**code, "counts": code["counts"].decode()}, mask.shape) is None
        for end in range(len(code["counts"])):
            assert rle_defect({**code, "counts": code["counts"][:end]}, mask.shape) is not None


def test_long_runs_of_a_large_image_are_read() -> None:
    size = (30000, 40000)
    code = coco_mask.frPyObjects({"size": size, "counts": [7, 3, size[0] * size[1] - 10]}, *size)
    assert rle_defect(code, size) is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [4, 5]}, "'size' and 'counts'"),
        ({"size": [5, 4], "counts": "d0"}, r"[5, 4] but the image's [height, width] is [4, 5]"),
        ({"size": [4.0, 5], "counts": "d0"}, "its size is [4.0, 5]"),
        ({"size": 20, "counts": "d0"}, "its size is 20"),
        ({"size": [4, 5], "counts": ""}, "malformed"),
        ({"size": [4, 5], "counts": "\x7f"}, "malformed"),
        ({"size": [4, 5], "counts": "é"}, "malformed"),
        ({"size": [4, 5], "counts": "ooooooooo0"}, "malformed"),
        ({"size": [4, 5], "counts": None}, "malformed"),
        ({"size": [4, 5], "counts": [10, -1, 11]}, "malformed"),
        ({"size": [4, 5], "counts": [10, 11]}, "add up to 21 of the image's 20 pixels"),
        ({"size": [4, 5], "counts": [10, 9]}, "add up to 19 of"),
        ({"size": [4, 5], "counts": [10, True]}, "malformed"),
    ],
)
def test_malformed_codes(code: dict, words: str) -> None:
    assert words in (rle_defect(code, (4, 5)) or "")


def test_uncompressed_counts_pass() -> None:
    assert rle_defect({"size": [4, 5], "counts": [0, 20]}, (4, 5)) is None
    assert rle_defect({"size": [4, 5], "counts": [5, 5, 10]}, (4, 5)) is None


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (None, "must be"),
        ([1, 2, 3], "must be"),
        ([1, 2, 3, "4"], "finite"),
        ([1, 2, 3, float("nan")], "finite"),
        ([1, float("inf"), 3, 4], "finite"),
        ([1, 2, 3, 10**400], "finite"),
        ([1, 2, -0.5, 4], "negative"),
    ],
)
def test_malformed_boxes(box: object, words: str) -> None:
    assert words in (box_defect(box) or "")


def test_boxes_without_area_pass() -> None:
    assert box_defect([1, 2.5, 0, 0]) is None


@pytest.mark.parametrize(
    ("polygon", "words"),
    [
        ([0, 0, 5, 5], "4 numbers are not a polygon"),
        ([0, 0, 5, 5, 5, 0, 1], "7 numbers are not a polygon"),
        (3.0, "not a list of numbers"),
        ([0, 0, 5, float("nan"), 5, 0], "not a list of numbers"),
        ([0, 0, 5, 5, 1e9, 0], "far outside the 20 x 10 image"),
        ([0, -11, 5, 5, 5, 0], "far outside"),
    ],
)
def test_malformed_polygons(polygon: object, words: str) -> None:
    assert words in (polygons_defect([[0, 0, 5, 5, 5, 0], polygon], (10, 20)) or "")


def test_polygons_a_little_outside_pass() -> None:
    assert polygons_defect([[-1.5, 0, 21, 5, 5, 12]], (10, 20)) is None


def test_number_kinds() -> None:
    assert is_int(3)
    assert not is_int(True)
    assert not is_int(3.0)
    assert not is_int(2**63)
    assert is_finite(3)
    assert is_finite(-0.5)
    assert not is_finite(False)
    assert not is_finite("0.5")
