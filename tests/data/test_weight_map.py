"""Equation 2 of U-Net against float64 loops over all pairs of pixels, and a case by hand."""

import math

import numpy as np
import pytest

from instseg.data.weight_map import UNetWeights, class_balance, components, gap_weights
from instseg.structures.semantic_map import IGNORE


def brute_force(cells, w0, sigma):
    """The second term, from the distance of every pixel to every pixel of every cell."""
    weights = np.zeros(cells.shape)
    numbers = sorted(set(cells[cells > 0].tolist()))
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            if cells[i, j] or len(numbers) < 2:
                continue
            distances = []
            for number in numbers:
                rows, columns = np.nonzero(cells == number)
                distances.append(np.sqrt((rows - i) ** 2.0 + (columns - j) ** 2.0).min())
            d1, d2 = sorted(distances)[:2]
            weights[i, j] = w0 * math.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return weights


def scattered(seed, size=(40, 52), count=9):
    """Cells of random rectangles, some of them painted over, with gaps in their numbers."""
    generator = np.random.default_rng(seed)
    cells = np.zeros(size, np.int32)
    for number in range(1, count + 1):
        top, left = generator.integers(0, size[0] - 3), generator.integers(0, size[1] - 3)
        height, width = generator.integers(1, 9, 2)
        cells[top : top + height, left : left + width] = 3 * number
    return cells


def test_two_squares_by_hand():
    cells = np.zeros((5, 9), np.int32)
    cells[1:4, :3] = 1
    cells[1:4, 6:] = 2
    weights = gap_weights(cells)
    # In the middle row d1 + d2 is 1 + 3, 2 + 2 and 3 + 1: 10 exp(-16 / 50) = 7.2615 each time.
    np.testing.assert_allclose(weights[2, 3:6], [7.261490] * 3, rtol=1e-6)
    # At the top of the middle column both are sqrt(1 + 4): 10 exp(-20 / 50) = 6.7032.
    np.testing.assert_allclose(weights[0, 4], 6.703200, rtol=1e-6)
    # Above the left square, 1 to it and sqrt(1 + 16) to the right one: (1 + 4.12311)^2 = 26.24621.
    np.testing.assert_allclose(weights[0, 2], 10 * math.exp(-26.24621 / 50), rtol=1e-6)
    assert (weights[1:4, [0, 1, 2, 6, 7, 8]] == 0).all()

    classes = (cells > 0).astype(np.uint8)
    full = UNetWeights()(classes, cells)
    # 18 of 45 pixels are cell: w_c = 45 / (2 * 18) = 1.25; background 45 / (2 * 27) = 0.8333.
    np.testing.assert_allclose(full[2], [1.25] * 3 + [0.8333333 + 7.261490] * 3 + [1.25] * 3)
    assert full.dtype == np.float32


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (3.0, 1.0)])
def test_gap_weights_equal_all_pairs(seed, w0, sigma):
    cells = scattered(seed)
    expected = brute_force(cells, w0, sigma)
    difference = expected - gap_weights(cells, w0, sigma)
    cut = w0 * math.exp(-12.5)
    assert difference.max() < cut + 1e-5
    assert difference.min() > -1e-5  # what is cut is only missing
    assert expected.max() > w0 / 10


def test_what_is_cut_off_is_only_far_away():
    cells = np.zeros((3, 80), np.int32)
    cells[:, 0], cells[:, 79] = 1, 2
    weights = gap_weights(cells, sigma=5.0)
    assert (weights == 0).all()
    assert brute_force(cells, 10.0, 5.0).max() < 10 * math.exp(-12.5)
    near = gap_weights(cells[:, 55:], sigma=5.0)
    assert (near == 0).all()  # one cell has no second
    np.testing.assert_allclose(
        gap_weights(cells, sigma=40.0), brute_force(cells, 10, 40), rtol=1e-5
    )


def test_class_balance_by_hand():
    # 100 known pixels: 80, 15 and 5 of three classes, class 1 does not occur.
    classes = np.repeat([0, 2, 3, IGNORE], [80, 15, 5, 28]).astype(np.uint8).reshape(8, 16)
    table = class_balance(classes)
    np.testing.assert_allclose(table[[0, 2, 3]], [100 / 240, 100 / 45, 100 / 15], rtol=1e-6)
    assert table[1] == table[IGNORE] == 0
    assert np.isclose(table[classes].sum(), 100)
    np.testing.assert_allclose(class_balance(classes, 5.0)[3], 5.0)
    assert (class_balance(np.full((4, 4), IGNORE, np.uint8)) == 0).all()
    assert class_balance(np.zeros((4, 4), np.uint8))[0] == 1


def test_unknown_pixels_weigh_nothing():
    cells = scattered(1)
    classes = (cells > 0).astype(np.uint8)
    classes[:, 20:30] = IGNORE
    weights = UNetWeights()(classes, cells)
    assert (weights[:, 20:30] == 0).all()
    assert (weights[:, :20] > 0).all()


def test_given_class_weights():
    classes = np.array([[0, 1, 2, IGNORE]], np.uint8)
    cells = np.zeros((1, 4), np.int32)
    weights = UNetWeights(w0=0, class_weights=[0.5, 2, 30], max_class_weight=20)(classes, cells)
    assert weights.tolist() == [[0.5, 2, 20, 0]]
    with pytest.raises(ValueError, match="2 weights, but the map has class 2"):
        UNetWeights(class_weights=[1, 2])(classes, cells)


def test_components_are_4_connected_and_of_one_class():
    classes = np.array(
        [
            [1, 0, 2, 2, 1],
            [0, 1, 2, 0, 1],
            [0, 1, 1, 0, 1],
        ]
    )
    cells = components(classes, [1, 2])
    assert cells.dtype == np.int32
    groups = {}
    for number in range(1, cells.max() + 1):
        groups[frozenset(zip(*np.nonzero(cells == number), strict=True))] = number
    assert set(groups) == {
        frozenset({(0, 0)}),
        frozenset({(1, 1), (2, 1), (2, 2)}),
        frozenset({(0, 4), (1, 4), (2, 4)}),
        frozenset({(0, 2), (0, 3), (1, 2)}),
    }
    assert ((cells > 0) == (classes > 0)).all()
    assert ((components(classes, [2]) > 0) == (classes == 2)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": -1}, "w0.*-1"),
        ({"sigma": 0}, "sigma.*0"),
        ({"class_weights": [1, 0]}, r"class_weights.*\[1, 0\]"),
        ({"max_class_weight": 0.5}, r"max_class_weight.*0\.5"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNetWeights(**arguments)
