"""Label images to run-length codes, against one mask after the other."""

from __future__ import annotations

import numpy as np
import pytest

from instseg.ops import rle
from instseg.ops.label_images import label_rles


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 17)])
def test_codes_are_those_of_the_single_masks(dtype: type, shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 6, shape).astype(dtype)
    labels[-1, -1] = 5  # a run that ends with the image
    expected = {i: rle.encode(labels == i) for i in range(1, 6) if (labels == i).any()}
    assert dict(label_rles(labels)) == expected
    assert [i for i, _ in label_rles(labels)] == sorted(expected)


def test_an_image_without_objects_and_one_that_is_an_object() -> None:
    assert list(label_rles(np.zeros((3, 4), np.int32))) == []
    ((label, code),) = label_rles(np.full((3, 4), 7, np.int32))
    assert label == 7
    assert np.array_equal(rle.decode(code), np.ones((3, 4)))


def test_ids_may_be_large_and_any_memory_order_will_do() -> None:
    labels = np.zeros((4, 5), np.int64)
    labels[1:3, 2] = 2**40
    for array in (labels, np.asfortranarray(labels), labels[::-1][::-1]):
        ((label, code),) = label_rles(array)
        assert label == 2**40
        assert rle.to_box(code) == (2, 1, 3, 3)
