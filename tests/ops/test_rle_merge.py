"""Merging masks of images too large for pycocotools' way, against it where it can."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from instseg.ops import rle

CODE = """
import resource
from instseg.ops import rle
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28))
size = (65536, 32767)
squares = [[10.0, 10, 300, 10, 300, 300, 10, 300], [200.0, 200, 500, 200, 500, 500, 200, 500]]
both = rle.merge(rle.from_many_polygons(squares, size))
shared = rle.merge(rle.from_many_polygons(squares, size), intersect=True)
print(rle.area(both), rle.area(shared), *map(int, rle.to_box(both)), *map(int, rle.to_box(shared)))
"""


@pytest.mark.parametrize("intersect", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_merging_by_runs(count: int, intersect: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(count)
    for density in (0.0, 0.05, 0.5, 0.95, 1.0):
        masks = rng.random((count, *rng.integers(1, 20, 2))) < density
        codes = [rle.encode(mask) for mask in masks]
        expected = rle.merge(codes, intersect=intersect)
        with monkeypatch.context() as patch:
            patch.setattr(rle, "MAX_PIXELS", 0)
            merged = rle.merge(codes, intersect=intersect)
        assert merged == expected
        whole = masks.all(axis=0) if intersect else masks.any(axis=0)
        assert (rle.decode(merged) == whole).all()


def test_memory_does_not_go_by_the_image() -> None:
    """pycocotools would take 8 GiB for four bytes a pixel, and crash where it gets none."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    area, shared, *boxes = map(int, done.stdout.split())
    assert (area, shared) == (290**2 + 300**2 - 100**2, 100**2)
    assert boxes == [10, 10, 500, 500, 200, 200, 300, 300]
