"""The annotation file and its three mask forms, against pycocotools and hand-worked cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from instseg.data.coco import (
    AnnotationError,
    SegmentationError,
    category_ids,
    load_coco,
    parse_segmentation,
    segmentation_area,
)
from instseg.ops import rle

EMPTY = {"images": [], "annotations": [], "categories": []}


def counts_by_the_loop(text: bytes) -> list[int]:
    """``rleFrString`` of maskApi.c, line by line."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        x, k, more = 0, 0, True
        while more:
            c = text[position] - 48
            x |= (c & 0x1F) << 5 * k
            more = bool(c & 0x20)
            position += 1
            k += 1
            if not more and c & 0x10:
                x |= -1 << 5 * k
        if len(counts) > 2:
            x += counts[-2]
        counts.append(x)
    return counts


def test_load_reads_what_was_written(tmp_path: Path) -> None:
    content = {**EMPTY, "images": [{"id": 1, "file_name": "ü.png"}], "info": {"year": 2020}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert load_coco(path) == content
    path.write_text(json.dumps(content), encoding="utf-8-sig")  # as Windows editors write it
    assert load_coco(str(path)) == content


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json: there is no such annotation file"):
        load_coco(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        load_coco(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 60, 99])
def test_json_cut_short_names_line_and_column(tmp_path: Path, cut: int) -> None:
    text = json.dumps({**EMPTY, "images": [{"id": 1, "file_name": "a.png"}]}, indent=1)
    path = tmp_path / "a.json"
    path.write_text(text[:cut])
    with pytest.raises(AnnotationError, match=r"a\.json: not valid JSON at line \d+, column \d+"):
        load_coco(path)


def test_line_and_column_are_right(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [],\n "annotations": [,]}')
    with pytest.raises(AnnotationError, match="line 2, column 18"):
        load_coco(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "got a list; a list is a results file"),
        (b"3", "got a int"),
        (b'{"images": [], "categories": []}', "'annotations' is missing; there are: images, cat"),
        (b"{}", "'images' is missing; there are: none"),
        (b'{"images": {}, "annotations": [], "categories": []}', "'images' must be a list"),
        (b'{"images": [], "annotations": null, "categories": []}', "'annotations' must be a list"),
        (b'{"images": "\xff"}', "cannot be read as JSON"),
        (b"[" * 200_000, "cannot be read as JSON"),
        (b'{"images": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
        (b"\x1f\x8b\x08\x00", "cannot be read as JSON"),
    ],
)
def test_content_that_is_no_coco_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load_coco(path)
    assert str(path) in str(caught.value)


def test_category_ids_are_sorted() -> None:
    assert category_ids({"categories": [{"id": 7}, {"id": 1}, {"id": 90}]}) == [1, 7, 90]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
)
def test_the_three_forms_give_one_mask(seed: int, height: int, width: int, density: float) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < density
    pixels = pixels.astype(np.uint8)
    size = (height, width)
    code = coco_mask.encode(np.asfortranarray(pixels))
    changes = np.flatnonzero(np.diff(pixels.reshape(-1, order="F"), prepend=0)).tolist()
    counts = np.diff([0, *changes, height * width]).tolist()
    np.testing.assert_array_equal(rle.decode_counts(code["counts"]), counts)

    for value in (
        {"size": list(size), "counts": counts},
        {"size": list(size), "counts": code["counts"]},
        {"size": list(size), "counts": code["counts"].decode()},
    ):
        parsed = parse_segmentation(value, size)
        assert isinstance(parsed, dict)
        assert isinstance(parsed["counts"], bytes)
        np.testing.assert_array_equal(rle.decode(parsed), pixels)
        assert segmentation_area(parsed) == pixels.sum()


@given(st.binary(max_size=40).map(lambda b: bytes(48 + c % 64 for c in b)))
def test_decoding_agrees_with_the_loop_or_refuses(text: bytes) -> None:
    """Arbitrary strings of the alphabet, of which few are masks."""
    try:
        counts = rle.decode_counts(text)
    except ValueError:
        number = max((len(n) for n in _numbers(text)), default=0)
        assert number > 7 or (text[-1] - 48) & 32
    else:
        assert counts.tolist() == counts_by_the_loop(text)


def _numbers(text: bytes) -> list[bytes]:
    numbers, current = [], b""
    for c in text:
        current += bytes([c])
        if not (c - 48) & 32:
            numbers.append(current)
            current = b""
    return [*numbers, current]


def test_large_runs_take_several_characters() -> None:
    # 10,000,000 of background and one pixel: far over five bits.
    code = coco_mask.frPyObjects({"size": [3163, 3163], "counts": [10_000_000, 4569]}, 3163, 3163)
    assert rle.decode_counts(code["counts"]).tolist() == [10_000_000, 4569]


SIZE = (4, 5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": [5, 4], "counts": [20]}, r"RLE size \[5, 4\] is not the image's"),
        ({"size": [10**9, 10**9], "counts": "0"}, "RLE size"),
        ({"counts": [20]}, "RLE size None"),
        ({"size": [4, 5]}, "must be a list or a string"),
        ({"size": [4, 5], "counts": 7}, "must be a list or a string"),
        ({"size": [4, 5], "counts": [19]}, "add up to 19, but 4 x 5 is 20"),
        ({"size": [4, 5], "counts": []}, "add up to 0"),
        ({"size": [4, 5], "counts": [10, 11]}, "add up to 21"),
        ({"size": [4, 5], "counts": [25, -5]}, "negative run -5"),
        ({"size": [4, 5], "counts": [2**62, 2**62, 2**62, 2**62, 20]}, "past the image's end"),
        ({"size": [4, 5], "counts": [2**70]}, "integers of less than 64 bits"),
        ({"size": [4, 5], "counts": [20.0]}, "must be integers"),
        ({"size": [4, 5], "counts": [True, 19]}, "must be integers"),
        ({"size": [4, 5], "counts": ["20"]}, "must be integers"),
        ({"size": [4, 5], "counts": [[20]]}, "must be integers"),
        ({"size": [4, 5], "counts": ""}, "add up to 0"),
        ({"size": [4, 5], "counts": "d"}, "cut short"),
        ({"size": [4, 5], "counts": "a b"}, "hold ' ' at position 1"),
        ({"size": [4, 5], "counts": "0\x00"}, r"hold '\\x00' at position 1"),
        ({"size": [4, 5], "counts": "pé"}, "not ASCII"),
        ({"size": [4, 5], "counts": "o" * 9 + "0"}, "over 35 bits"),
        ({"size": [4, 5], "counts": "oooooo0"}, "past the image's end"),
        ({"size": [4, 5], "counts": "O"}, "negative run -1"),
        ([[0, 0, 3, 0, 3]], "polygon 0 has 5 values, an odd number"),
        ([[0, 0, 3, 3]], "no polygon has three points"),
        ([[]], "no polygon has three points"),
        ([[0, 0, 3, 0, float("nan"), 3]], "not finite"),
        ([[0, 0, 3, 0, float("inf"), 3]], "not finite"),
        ([[0, 0, 3, 0, 3, 10**400]], "not a flat list of numbers"),
        ([[0, 0, 3, 0, 3, None]], "not a flat list of numbers"),
        ([["0", "0", "3", "0", "3", "3"]], "not a flat list of numbers"),
        ([[[0, 0], [3, 0], [3, 3]]], "not a flat list of numbers"),
        ([[[0, 0], [3]]], "not a flat list of numbers"),
        ([0, 0, 3, 0, 3, 3], r"polygon 0 must be a list \[x1, y1"),
        ([[0, 0, 3, 0, 3, 3], [1]], "polygon 1 has 1 values"),
        ([[0, 0, 3e9, 0, 3, 3]], "coordinate 3e.09"),
        ([[0, 0, 60_000_000, 0, 3, 3]], "outline of 1.2e.08 pixels on an image of 5 x 4"),
        ("polygon", "expected a list of polygons or an RLE object, got a str"),
    ],
)
def test_values_that_are_no_mask(value: object, message: str) -> None:
    with pytest.raises(SegmentationError, match=message):
        parse_segmentation(value, SIZE)


def test_polygons_become_arrays_and_slivers_go() -> None:
    parsed = parse_segmentation(
        [[0, 0, 3, 0, 3.5, 2], [1, 1, 2, 2], [1, 1, 4, 1, 4, 3, 1, 3]], SIZE
    )
    assert isinstance(parsed, list)
    assert [p.dtype for p in parsed] == [np.float64, np.float64]
    np.testing.assert_array_equal(parsed[0], [[0, 0], [3, 0], [3.5, 2]])
    # By hand: a triangle of base 3 and height 2, and a rectangle of 3 x 2; the direction is no
    # matter.
    assert segmentation_area(parsed) == pytest.approx(3 + 6)
    assert segmentation_area([p[::-1] for p in parsed]) == pytest.approx(9)


def test_a_polygon_may_reach_far_out_of_a_tile() -> None:
    value = [[-5000.0, 1.0, 5000.0, 1.0, 5000.0, 3.0, -5000.0, 3.0]]
    parsed = parse_segmentation(value, SIZE)
    assert isinstance(parsed, list)
    assert rle.decode(rle.from_polygons(parsed, SIZE))[1:3].all()


@pytest.mark.real_data
def test_real_masks_agree_with_pycocotools(real_data: Path) -> None:
    coco = load_coco(real_data / "coco_gold" / "instances_val2014_100.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    crowds = 0
    for annotation in coco["annotations"]:
        size = sizes[annotation["image_id"]]
        parsed = parse_segmentation(annotation["segmentation"], size)
        reference = coco_mask.frPyObjects(annotation["segmentation"], *size)
        if isinstance(parsed, dict):
            crowds += 1
            assert parsed["counts"] == reference["counts"]
        else:
            assert rle.from_polygons(parsed, size) == coco_mask.merge(reference)
            assert segmentation_area(parsed) == pytest.approx(annotation["area"], rel=0.01)
    assert crowds > 0
