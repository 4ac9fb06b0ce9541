"""Mirrored indices against numpy's padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instseg.ops.mirror import mirrored_indices


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 5), (1, 1), (23, 40)])
def test_indices_are_those_of_numpys_padding(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    found = mirrored_indices(-before, before + length + after, length)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()


def test_windows_may_lie_anywhere() -> None:
    line = np.pad(np.arange(5), 50, mode="reflect")
    for start in range(-50, 50):
        assert mirrored_indices(start, 4, 5).tolist() == line[start + 50 : start + 54].tolist()
    assert mirrored_indices(3, 0, 5).tolist() == []
