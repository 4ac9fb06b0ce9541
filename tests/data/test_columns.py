"""The file of columns; masks and defects in columns."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.data.coco import load_coco, parse_segmentation
from instseg.data.columns import Columns, ColumnsError, open_columns, write_columns
from instseg.data.defect_log import DefectLog, read_defects
from instseg.data.defects import Defect, Severity
from instseg.data.mask_codes import PartKind, decode_mask, encode_mask, original_mask
from tests.data.exact import plain

# The file of columns.


def test_columns_come_back(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(7, dtype=np.int32),
        "none": np.zeros((0, 4)),
        "b": np.linspace(0, 1, 6).reshape(3, 2),
        "c": np.arange(200, dtype=np.uint8)[::2],
    }
    path = tmp_path / "x"
    with path.open("wb") as file:
        write_columns(file, arrays, {"k": ["\u00fc", 1, None]})
    found = open_columns(path)
    assert found.meta == {"k": ["\u00fc", 1, None]}
    assert {n: plain(a) for n, a in found.arrays.items()} == {
        n: plain(a) for n, a in arrays.items()
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"", "no file of columns"),
        (lambda b: b"{}" * 100, "no file of columns"),
        (lambda b: b[:20], "no file of columns"),
        (lambda b: b[:80], "cut short"),
        (lambda b: b[:-1], "cut short"),
        (lambda b: b + b"\0", "longer than it says"),
        (lambda b: b[:40] + b"#" + b[41:], "header is damaged"),
        (lambda b: b[:-100] + bytes([b[-100] ^ 1]) + b[-99:], "columns are damaged"),
        (lambda b: b[:8] + b"\xff" * 8 + b[16:], "cut short"),
    ],
)
def test_damaged_files_of_columns(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        write_columns(file, {"a": np.arange(100)}, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ColumnsError, match=message):
        open_columns(path)


def test_only_a_thorough_opening_reads_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        write_columns(file, {"a": np.arange(100)}, {})
    content = path.read_bytes()
    path.write_bytes(content[:-100] + b"!" + content[-99:])
    assert isinstance(open_columns(path, verify=False), Columns)


# Masks.

COORDINATE = st.one_of(
    st.integers(-100, 70_000),
    st.integers(-10_000, 7_000_000).map(lambda k: k / 100),
    st.floats(-1e4, 1e4),
    st.sampled_from([655.35, 655.36, -0.01, 2.0**26, -(2.0**26), 0.1 + 0.2, 5e-324]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(COORDINATE, min_size=6, max_size=12).filter(lambda p: len(p) % 2 == 0))
def test_polygons_come_back_bit_for_bit(polygon: list[float]) -> None:
    size = (20_000, 20_000)
    try:
        (expected,) = parse_segmentation([polygon], size)
    except ValueError:  # an outline beyond what is rasterised
        return
    parts = encode_mask([polygon], size)
    (found,) = decode_mask(parts, size)
    assert plain(found) == plain(expected)
    assert original_mask(parts, size) == [polygon]


@pytest.mark.parametrize(
    ("last", "kind", "width"),
    [
        (655.35, PartKind.HUNDREDTHS_16, 2),
        (655.36, PartKind.HUNDREDTHS_32, 4),
        (-0.01, PartKind.HUNDREDTHS_32, 4),
        (0.125, PartKind.FLOATS, 8),
        (1e5 / 3, PartKind.FLOATS, 8),
    ],
)
def test_polygons_take_the_shortest_form(last: float, kind: PartKind, width: int) -> None:
    ((found, content),) = encode_mask([[0, 0.07, 10, 0, 10, last]], (40_000, 1000))
    assert (found, len(content)) == (kind, 6 * width)


# Defects.


def test_defects_come_back_in_order() -> None:
    severities = list(Severity)
    defects = [
        Defect(f"code-{i % 5}", severities[i % 3], f"\ud800 {i}", "f", i or None, 2 * i or None)
        for i in range(10_000)
    ]
    log = DefectLog()
    log.extend(defects[:7000])
    log.extend(defects[7000:])
    assert list(read_defects(log.arrays(), "f")) == defects
    errors = Counter(d.code for d in defects if d.severity is Severity.ERROR)
    assert log.reasons().startswith(f"{errors['code-0']} code-0 (annotation 30, 60, 90, 120, 150, ")
    assert list(read_defects(DefectLog().arrays(), "f")) == []


@pytest.mark.real_data
def test_polygons_of_coco_take_two_bytes_a_number(real_data: Path) -> None:
    coco = load_coco(real_data / "coco_gold" / "instances_val2014_100.json")
    sizes = {i["id"]: (i["height"], i["width"]) for i in coco["images"]}
    parts = [
        part
        for a in coco["annotations"]
        for part in encode_mask(a["segmentation"], sizes[a["image_id"]])
    ]
    assert {kind for kind, _ in parts} == {PartKind.HUNDREDTHS_16, PartKind.RLE_RUNS}
