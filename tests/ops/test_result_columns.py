"""The reader of result files, on every backend: what it reads, and what it leaves to others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.ops import available_backends, use_backend
from instseg.ops.result_columns import result_columns
from instseg.structures.run_lengths import ResultColumns

BACKENDS = [name for name in available_backends() if name != "triton"]
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)

IDS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15)
COUNTS = st.text([chr(c) for c in range(48, 112)], max_size=20)
OTHERS = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a b", "{[,"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=5,
)


def read(text: str | bytes, backend: str) -> ResultColumns | None:
    data = text.encode() if isinstance(text, str) else text
    with use_backend(backend):
        return result_columns(np.frombuffer(bytearray(data), np.uint8))


@on_every_backend
@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.sampled_from([None, 1]))
def test_columns_hold_what_the_records_do(
    backend: str, data: st.DataObject, boxes: bool, masks: bool, indent: int | None
) -> None:
    fields: dict[str, Any] = {"image_id": IDS, "category_id": IDS, "score": NUMBERS}
    if boxes:
        fields["bbox"] = st.lists(NUMBERS, min_size=4, max_size=4)
    if masks:
        size = st.lists(st.integers(0, 10**6), min_size=2, max_size=2)
        fields["segmentation"] = st.fixed_dictionaries({"counts": COUNTS, "size": size})
    record = st.fixed_dictionaries(fields, optional={"other": OTHERS})
    records = data.draw(st.lists(record, max_size=4))
    columns = read(json.dumps(records, indent=indent), backend)
    assert columns is not None
    assert columns.image.tolist() == [r["image_id"] for r in records]
    assert columns.category.tolist() == [r["category_id"] for r in records]
    assert columns.score.tolist() == [r["score"] for r in records]
    assert (columns.box is not None) == (boxes and bool(records))
    if columns.box is not None:
        assert columns.box.tolist() == [r["bbox"] for r in records]
    assert (columns.masks is not None) == (masks and bool(records))
    if columns.masks is not None:
        codes = [{"size": c["size"], "counts": c["counts"].decode()} for c in columns.masks]
        assert codes == [r["segmentation"] for r in records]


GOOD = '{"image_id":1,"category_id":2,"score":0.5,"bbox":[1,2,3,4]}'
MASK = '{"image_id":1,"category_id":2,"score":0.5,"segmentation":{"size":[2,2],"counts":"04"}}'


@on_every_backend
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[" + GOOD,
        "[" + GOOD + ",]",
        "[" + GOOD + "]]",
        f"[{GOOD},{MASK}]",
        f"[{GOOD[:-1]}",
        "[" + GOOD.replace('"score":0.5,', "") + "]",
        "[" + GOOD.replace("0.5", '"0.5"') + "]",
        "[" + GOOD.replace("0.5", "NaN") + "]",
        "[" + GOOD.replace("0.5", "Infinity") + "]",
        "[" + GOOD.replace("0.5", ".5") + "]",
        "[" + GOOD.replace("0.5", "5.") + "]",
        "[" + GOOD.replace("0.5", "00.5") + "]",
        "[" + GOOD.replace("0.5", "-") + "]",
        "[" + GOOD.replace("0.5", "5.e1") + "]",
        "[" + GOOD.replace(":1,", ":1.5,", 1) + "]",
        "[" + GOOD.replace(":1,", ":99999999999999999999,", 1) + "]",
        "[" + GOOD.replace("3,4]", "3]") + "]",
        "[" + GOOD.replace("3,4]", "3,4,5]") + "]",
        "[" + MASK.replace('"04"', "[0,4]") + "]",
        "[" + MASK.replace('"size":[2,2],', "") + "]",
        "[" + MASK.replace("04", "0\\q") + "]",
    ],
)
def test_anything_unusual_is_left_to_the_careful_reader(backend: str, text: str) -> None:
    assert read(text, backend) is None


@on_every_backend
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_do_harm(backend: str, data: st.DataObject) -> None:
    """Cut, doubled or overwritten anywhere, a file is read as JSON reads it, or not at all."""
    whole = f"[{GOOD}, {GOOD}]" if data.draw(st.booleans()) else f"[{MASK},{MASK}]"
    text = bytearray(whole.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    columns = read(bytes(text), backend)
    if columns is not None:
        records = json.loads(bytes(text).decode("utf-8", "replace"))
        assert columns.image.tolist() == [r["image_id"] for r in records]
        assert columns.score.tolist() == [r["score"] for r in records]


@on_every_backend
def test_depth_is_bounded(backend: str) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert read("[" + GOOD[:-1] + f',"x":{deep}}}]', backend) is None
