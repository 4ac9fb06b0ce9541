"""Checks and overlaps of run-length strings, and bootstrap replicates, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.ops import available_backends, rle, use_backend
from instseg.ops.bootstrap import bootstrap_precision
from instseg.structures.run_lengths import RunLengths

BACKENDS = [name for name in available_backends() if name != "triton"]
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def counts_of(runs: list[int]) -> bytes:
    code = rle.from_uncompressed(runs, (1, max(sum(runs), 1)))
    return bytes(code["counts"])


def side_by_side(counts: list[bytes], pixels: list[int]) -> RunLengths:
    return RunLengths.of(
        [{"size": [n, 1], "counts": c} for c, n in zip(counts, pixels, strict=True)]
    )


@on_every_backend
@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), min_size=1, max_size=6))
def test_well_formed_counts_have_an_area(backend: str, masks: list[list[int]]) -> None:
    counts = [counts_of(runs) for runs in masks]
    pixels = [sum(runs) for runs in masks]
    with use_backend(backend):
        areas = rle.areas(side_by_side(counts, pixels))
        assert areas.tolist() == [sum(runs[1::2]) for runs in masks]
        assert (rle.areas(side_by_side(counts, [n + 1 for n in pixels])) == -1).all()


def area_of(text: bytes, pixels: int) -> int:
    try:
        runs = rle.decode_counts(text)
    except ValueError:
        return -1
    sound = len(runs) > 0 and bool((runs >= 0).all()) and int(runs.sum()) == pixels
    return int(runs[1::2].sum()) if sound else -1


@on_every_backend
@settings(max_examples=300)
@given(st.lists(st.binary(max_size=12), min_size=1, max_size=6), st.integers(0, 1 << 40))
def test_any_bytes_are_judged_as_one_by_one(backend: str, counts: list[bytes], pixels: int) -> None:
    with use_backend(backend):
        got = rle.areas(side_by_side(counts, [pixels] * len(counts)))
    assert got.tolist() == [area_of(text, pixels) for text in counts]


CHARACTERS = st.lists(st.integers(48, 111), max_size=14).map(bytes)


@on_every_backend
@settings(max_examples=300)
@given(st.lists(CHARACTERS, min_size=1, max_size=6))
def test_any_characters_of_the_code_are_judged_as_one_by_one(
    backend: str, counts: list[bytes]
) -> None:
    pixels = []
    for text in counts:  # what they add up to, where that can be said, so that many are sound
        try:
            pixels.append(int(rle.decode_counts(text).sum()))
        except ValueError:
            pixels.append(7)
    with use_backend(backend):
        got = rle.areas(side_by_side(counts, pixels))
    assert got.tolist() == [area_of(*pair) for pair in zip(counts, pixels, strict=True)]


@on_every_backend
def test_many_strings_are_judged_in_parts(backend: str) -> None:
    good = counts_of([3, 4, 500_000, 7] * 60)
    counts = [good, good[:-1] + b"\x00"] * 8000
    assert sum(map(len, counts)) > 4_000_000
    masks = side_by_side(counts, [(3 + 4 + 500_000 + 7) * 60] * len(counts))
    with use_backend(backend):
        assert rle.areas(masks).tolist() == [(4 + 7) * 60, -1] * 8000


@on_every_backend
def test_some_of_the_strings_in_another_order(backend: str) -> None:
    masks = RunLengths.of([rle.encode(np.eye(n, dtype=np.uint8)) for n in (3, 4, 5)])
    picked = masks.take(np.array([2, 0]))
    assert [code["size"] for code in picked] == [[5, 5], [3, 3]]
    assert rle.decode(picked[1]).tolist() == np.eye(3).tolist()
    with use_backend(backend):
        assert rle.areas(picked).tolist() == [5, 3]


def random_masks(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    masks = [rng.random((13, 17)) < rng.choice([0, 0.1, 0.6, 1]) for _ in range(count)]
    for mask in masks[::2]:
        y, x = rng.integers(0, 9, 2)
        mask[:] = False
        mask[y : y + 6, x : x + 7] = True
    return masks


@on_every_backend
@pytest.mark.parametrize("seed", range(10))
def test_pair_iou_against_pixels(backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_masks(rng, 6), random_masks(rng, 5)
    i = np.sort(rng.integers(0, 6, 40))
    j = rng.integers(0, 5, 40)
    crowd = rng.random(40) < 0.3
    with use_backend(backend):
        codes = (RunLengths.of([rle.encode(m) for m in masks]) for masks in (first, second))
        got = rle.pair_iou(*codes, i, j, crowd)
    for value, a, b, is_crowd in zip(got, i, j, crowd, strict=True):
        shared = (first[a] & second[b]).sum()
        all_ = first[a].sum() if is_crowd else (first[a] | second[b]).sum()
        if all_ > 0 and first[a].any() and second[b].any():
            assert value == shared / all_
        else:
            assert not value > 0 or shared == 0


@on_every_backend
def test_no_pairs(backend: str) -> None:
    none = np.zeros(0, np.int64)
    with use_backend(backend):
        empty = RunLengths.of([])
        assert rle.areas(empty).shape == (0,)
        assert rle.pair_iou(empty, empty, none, none, np.zeros(0, np.bool_)).shape == (0,)


def replicates_by_definition(columns: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Every detection as often as its image is drawn, one after the other."""
    found, ignored = columns["found"], columns["ignored"]
    objects, recalls, limits = columns["objects"], columns["recalls"], columns["limits"]
    copies, thresholds = len(objects), found.shape[1]
    precision = np.zeros((copies, thresholds))
    hits = np.zeros((copies, thresholds, len(limits)), np.int64)
    for b, t in np.ndindex(copies, thresholds):
        true = counted = 0
        curve = []
        for n in range(len(found)):
            if ignored[n, t]:
                continue
            for _ in range(columns["weights"][columns["image"][n], b]):
                counted += 1
                true += found[n, t]
                curve.append((true / objects[b], true / counted))
                hits[b, t] += found[n, t] * (columns["rank"][n] < limits)
        precision[b, t] = np.mean(
            [max((p for reached, p in curve if reached >= r), default=0.0) for r in recalls]
        )
    return precision, hits


@on_every_backend
@pytest.mark.parametrize("seed", range(8))
def test_replicates_against_the_definition(backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, detections, copies = 7, int(rng.choice([0, 1, 25])), 40  # more than one block of lanes
    weights = rng.integers(0, 3, (images, copies)).astype(np.int32)
    columns = {
        "found": rng.random((detections, 3)) < 0.5,
        "ignored": rng.random((detections, 3)) < 0.2,
        "rank": rng.integers(0, 6, detections),
        "image": rng.integers(0, images, detections),
        "weights": weights,
        # Enough for all hits, whatever is drawn.
        "objects": np.full(copies, 60) + weights.sum(axis=0),
        "recalls": np.linspace(0, 1, 101),
        "limits": np.array([1, 3, 100]),
    }
    with use_backend(backend):
        precision, hits = bootstrap_precision(**columns)
    expected_precision, expected_hits = replicates_by_definition(columns)
    np.testing.assert_allclose(precision, expected_precision, atol=1e-13)
    np.testing.assert_array_equal(hits, expected_hits)
