"""Maps painted from objects against maps written out by hand and plain loops."""

import numpy as np
import pytest
import torch

from instseg.data.semantic_targets import SemanticTarget, inside_and_border
from instseg.data.weight_map import UNetWeights, gap_weights
from instseg.ops import rle
from instseg.structures import Instances, SparseMasks
from instseg.structures.semantic_map import IGNORE


def instances(masks, labels, crowd=None, size=None):
    """Objects with the given pixels ``[H, W]``."""
    size = size or masks[0].shape
    codes = [rle.encode(np.asarray(mask) > 0) for mask in masks]
    return Instances(
        size,
        torch.tensor([rle.to_box(code) for code in codes]).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        masks=SparseMasks(codes, size, size),
        is_crowd=None if crowd is None else torch.tensor(crowd),
    )


def drawn(*rows):
    """The pixels that are not dots."""
    return np.array([[c != "." for c in row] for row in rows])


BIG = drawn(
    "xxxx..",
    "xxxx..",
    "xxxx..",
    "......",
)
SMALL = drawn(
    "......",
    "..xx..",
    "..xx..",
    "..xx..",
)
CROWD = drawn(
    "....xx",
    "...xxx",
    "....xx",
    "....xx",
)
I = IGNORE  # noqa: E741


@pytest.mark.parametrize("small_first", [False, True])
def test_multiclass_the_smaller_object_wins(small_first):
    masks, labels, crowd = [BIG, SMALL, CROWD], [0, 2, 1], [False, False, True]
    if small_first:
        masks, labels, crowd = masks[::-1], labels[::-1], crowd[::-1]
    target = SemanticTarget(3)(instances(masks, labels, crowd))
    assert target.labels.dtype == torch.uint8
    assert target.labels.tolist() == [
        [1, 1, 1, 1, I, I],
        [1, 1, 3, 3, I, I],
        [1, 1, 3, 3, I, I],
        [0, 0, 3, 3, I, I],
    ]
    assert target.weights is None
    assert SemanticTarget(3).num_outputs == 4


def test_equally_large_objects_the_later_wins():
    for labels in ([0, 1], [1, 0]):
        target = SemanticTarget(2)(instances([BIG, BIG], labels))
        assert (target.labels.numpy()[BIG] == labels[1] + 1).all()


def test_multiclass_without_background():
    maker = SemanticTarget(3, background=False)
    target = maker(instances([BIG, SMALL, CROWD], [0, 2, 1], [False, False, True]))
    assert maker.num_outputs == 3
    assert target.labels.tolist() == [
        [0, 0, 0, 0, I, I],
        [0, 0, 2, 2, I, I],
        [0, 0, 2, 2, I, I],
        [I, I, 2, 2, I, I],
    ]


def test_multilabel_objects_overlap_and_crowds_hide_their_label_alone():
    maker = SemanticTarget(3, "multilabel")
    target = maker(instances([BIG, SMALL, CROWD], [0, 2, 2], [False, False, True]))
    assert maker.num_outputs == 3
    assert target.is_multi_label
    third = SMALL.astype(int)
    third[CROWD & ~SMALL] = IGNORE
    assert target.labels.tolist() == [
        BIG.astype(int).tolist(),
        np.zeros((4, 6)).tolist(),
        third.tolist(),
    ]


def test_images_without_objects():
    empty = Instances.empty((3, 5), with_masks=True)
    for kind, shape in (("multiclass", (3, 5)), ("border", (3, 5)), ("multilabel", (1, 3, 5))):
        target = SemanticTarget(1, kind, separate_touching=True, weights=UNetWeights())(empty)
        assert target.labels.shape == shape
        assert not target.labels.any()
        assert (target.weights == 1).all()
    assert (SemanticTarget(1, background=False)(empty).labels == IGNORE).all()


def plain_border(numbers, width):
    """Border by its definition: some pixel within ``width`` is not of the object."""
    classes = np.zeros(numbers.shape, int)
    height, length = numbers.shape
    for i in range(height):
        for j in range(length):
            if numbers[i, j]:
                classes[i, j] = 1
                for y in range(height):
                    for x in range(length):
                        near = (y - i) ** 2 + (x - j) ** 2 <= width**2
                        if near and numbers[y, x] != numbers[i, j]:
                            classes[i, j] = 2
    return classes


@pytest.mark.parametrize("width", [1, 2, 3])
def test_border_is_its_definition(width):
    rows, columns = np.mgrid[:34, :40]
    numbers = np.zeros((34, 40), np.int32)
    numbers[np.hypot(rows - 12, columns - 12) < 11] = 1
    numbers[(np.hypot(rows - 18, columns - 27) < 10) & (numbers == 0)] = 2
    numbers[(rows > 22) & (columns < 15) & (numbers == 0)] = 3  # cut by the image's edge
    got = inside_and_border(numbers, width)
    assert got.tolist() == plain_border(numbers, width).tolist()
    assert got[33, 0] == 1  # the end of the image is no border


def test_insides_of_touching_objects_are_apart_and_none_is_lost():
    masks = [
        drawn("xxxxxx......", *["xxxxxx......"] * 6),
        drawn("......xxxxx.", *["......xxxxx."] * 6),
        drawn(*["............"] * 6, "...........x"),
    ]
    got = SemanticTarget(1, "border", border_width=2)(instances(masks, [0, 0, 0]))
    row = got.labels[3].tolist()
    assert row == [1, 1, 1, 1, 2, 2, 2, 2, 1, 2, 2, 0]
    assert got.labels[6, 11] == 1  # a single pixel has nothing but border
    thin = drawn("........", ".xxxxxx.", ".xxxxxx.", ".xxxxxx.", "........")
    got = SemanticTarget(1, "border", border_width=2)(instances([thin], [0]))
    assert got.labels.tolist() == [
        [0] * 8,
        [0] + [2] * 6 + [0],
        [0, 2, 1, 1, 1, 1, 2, 0],
        [0] + [2] * 6 + [0],
        [0] * 8,
    ]


def test_crowds_in_border_maps_are_ignored():
    got = SemanticTarget(1, "border", border_width=1)(
        instances([BIG, CROWD], [0, 0], [False, True])
    )
    assert got.labels.tolist() == [
        [1, 1, 1, 2, I, I],
        [1, 1, 1, 2, I, I],
        [2, 2, 2, 2, I, I],
        [0, 0, 0, 0, I, I],
    ]


def test_touching_objects_get_a_line_of_background_from_the_larger():
    left = drawn("xxx...", "xxx...", "xxx...", "xxxx..")
    right = drawn("...xxx", "...xx.", "......", "......")
    corner = drawn("......", "......", "......", "....xx")
    objects = instances([right, left, corner], [0, 0, 0])
    joined = SemanticTarget(1)(objects)
    assert joined.labels[0].tolist() == [1] * 6
    parted = SemanticTarget(1, separate_touching=True)(objects)
    assert parted.labels.tolist() == [
        [1, 1, 0, 1, 1, 1],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0],  # touches the right one at a corner
        [1, 1, 1, 0, 1, 1],
    ]
    # Objects of other labels need no gap where each label has its map.
    objects = instances([right, left], [1, 0])
    maps = SemanticTarget(2, "multilabel", separate_touching=True)(objects).labels
    assert np.array_equal(maps.numpy(), np.stack([left, right]))


def cells_image():
    rows, columns = np.mgrid[:40, :50]
    masks = [np.hypot(rows - y, columns - x) < 8 for y, x in ((12, 12), (14, 31), (30, 22))]
    return masks, rows, columns


def test_weights_see_cells_and_classes():
    masks, _, _ = cells_image()
    cells = np.zeros((40, 50), np.int32)
    for number, mask in enumerate(masks, start=1):
        cells[mask] = number
    got = SemanticTarget(1, weights=UNetWeights())(instances(masks, [0] * 3))
    expected = UNetWeights()((cells > 0).astype(np.uint8), cells)
    np.testing.assert_allclose(got.weights.numpy(), expected, rtol=1e-6)
    multi = SemanticTarget(1, "multilabel", weights=UNetWeights())(instances(masks, [0] * 3))
    assert torch.equal(multi.weights, got.weights)
    border = SemanticTarget(1, "border", weights=UNetWeights())(instances(masks, [0] * 3))
    balance = border.weights.numpy() - gap_weights(cells)
    counts = np.bincount(border.labels.numpy().ravel(), minlength=3)
    np.testing.assert_allclose(
        balance, (2000 / (3 * counts))[border.labels.numpy()], rtol=1e-4, atol=1e-4
    )


def test_cells_of_class_maps_are_components_of_one_label():
    """One object a label, as where a data set has classes alone."""
    masks, _, _ = cells_image()
    cell = np.any(masks, axis=0)
    separate = SemanticTarget(1, weights=UNetWeights())(instances(masks, [0] * 3))
    whole = instances([cell, ~cell], [0, 1])
    maker = SemanticTarget(
        2, background=False, weights=UNetWeights(), cells="components", cell_labels=[0]
    )
    got = maker(whole)
    assert np.array_equal(got.labels.numpy(), 1 - cell)
    torch.testing.assert_close(got.weights, separate.weights)
    alone = SemanticTarget(2, background=False, weights=UNetWeights(), cell_labels=[0])(whole)
    assert got.weights.max() > alone.weights.max() + 3  # one cell has no gaps


def test_labels_that_are_no_cells_make_no_gaps():
    masks, _, _ = cells_image()
    maker = SemanticTarget(2, weights=UNetWeights(class_weights=[1, 1, 1]), cell_labels=[0])
    got = maker(instances(masks, [0, 1, 0]))
    two = SemanticTarget(1, weights=UNetWeights(class_weights=[1, 1]))
    expected = two(instances([masks[0], masks[2]], [0, 0])).weights.numpy()
    assert np.array_equal(got.weights.numpy(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes.*0"),
        ({"num_classes": 255}, "num_classes.*255"),
        ({"num_classes": 2, "kind": "border"}, "num_classes=2"),
        ({"num_classes": 1, "kind": "instance"}, "'instance'"),
        ({"num_classes": 1, "cells": "all"}, "'all'"),
        ({"num_classes": 1, "border_width": 0}, "border_width.*0"),
        ({"num_classes": 1, "background": False, "separate_touching": True}, "background=False"),
        ({"num_classes": 1, "background": False, "kind": "multilabel"}, "background=False"),
        ({"num_classes": 2, "cell_labels": [2]}, r"cell_labels must be in 0\.\.1, got 2"),
    ],
)
def test_refuses_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemanticTarget(**arguments)


def test_refuses_objects():
    objects = instances([BIG, SMALL], [0, 3])
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, got \[0, 3\]"):
        SemanticTarget(3)(objects)
    objects.masks = None
    with pytest.raises(ValueError, match="none"):
        SemanticTarget(4)(objects)
