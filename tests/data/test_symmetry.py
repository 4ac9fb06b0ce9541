"""Flips and quarter turns against torch's on dense masks, and intensities against plain loops."""

import math

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from instseg.data.transforms import Compose, Resize
from instseg.data.transforms.intensity import IntensityJitter
from instseg.data.transforms.symmetry import (
    RandomRotation90,
    RandomVerticalFlip,
    transpose,
    vflip,
)
from instseg.ops import instance_rles, rle
from instseg.structures import BitMasks, Instances, SparseMasks

SIZE = (30, 44)


def scene(dtype=torch.uint8, size=SIZE):
    """A rectangle drawn as a polygon and a random mask as run lengths, one channel each."""
    rectangle = [np.array([[4.0, 6], [20, 6], [20, 25], [4, 25]])]
    noise = np.random.default_rng(0).random(size) < 0.5
    noise[:, 37:] = False
    dense = np.stack([rle.decode(rle.from_polygons(rectangle, size)), noise]).astype(np.uint8)
    target = Instances(
        image_size=size,
        boxes=torch.tensor([[4.0, 6, 20, 25], [0, 0, 37, 30]]),
        labels=torch.tensor([3, 1]),
        masks=SparseMasks([rectangle, rle.encode(noise)], size, size),
        is_crowd=torch.tensor([False, True]),
    )
    return tv_tensors.Image(torch.from_numpy(dense * np.uint8(255)).to(dtype)), target


def dense_of(target):
    return torch.from_numpy(np.stack([rle.decode(code) for code in instance_rles(target)]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    ("move", "truth"),
    [(vflip, lambda x: x.flip(1)), (transpose, lambda x: x.transpose(1, 2))],
)
def test_moves_are_torchs(move, truth, dtype):
    image, target = scene(dtype)
    moved_image, moved = move(image, target)
    assert isinstance(moved_image, tv_tensors.Image)
    assert torch.equal(moved_image, truth(image))
    assert tuple(moved_image.shape[1:]) == moved.image_size == moved.masks.size
    assert torch.equal(dense_of(moved), truth(dense_of(target)))
    for box, mask in zip(moved.boxes.tolist(), dense_of(moved), strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_all_four_turns_come_up_and_are_torchs():
    image, target = scene()
    dense = dense_of(target)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        moved_image, moved = Compose([RandomRotation90()])(image, target)
        (turns,) = [k for k in range(4) if torch.equal(torch.rot90(image, k, (1, 2)), moved_image)]
        seen.add(turns)
        assert torch.equal(dense_of(moved), torch.rot90(dense, turns, (1, 2)))
        assert moved.labels.tolist() == [3, 1]
        assert moved.crowd.tolist() == [False, True]
    assert seen == {0, 1, 2, 3}


def test_probabilities():
    image, target = scene()
    always, never = RandomVerticalFlip(1.0), RandomVerticalFlip(0.0)
    assert torch.equal(always(image, target)[0], image.flip(1))
    assert never(image, target)[0] is image
    assert RandomRotation90(0.0)(image, target)[0] is image
    for transform in (RandomVerticalFlip, RandomRotation90, lambda p: IntensityJitter(p=p)):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 2"):
            transform(2)


def test_transposed_masks_follow_later_and_earlier_maps():
    """Resized, transposed and resized back is the transpose: the lazy maps compose."""
    image, target = scene()
    bigger = Resize((60, 132))(image, target)
    swapped = Resize((44, 30))(*transpose(*bigger))
    assert torch.equal(dense_of(swapped[1])[1], dense_of(target)[1].T)
    torch.testing.assert_close(swapped[1].boxes, target.boxes[:, [1, 0, 3, 2]])


def test_turns_without_masks_and_refused_masks():
    image, target = scene()
    target.masks = None
    assert transpose(image, target)[1].boxes.tolist() == [[6, 4, 25, 20], [0, 0, 30, 37]]
    target.masks = BitMasks(torch.zeros(2, *SIZE, dtype=torch.uint8))
    with pytest.raises(TypeError, match="BitMasks"):
        transpose(image, target)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_intensities_follow_the_formula(dtype):
    top = torch.iinfo(dtype).max
    values = (
        np.random.default_rng(2).integers(0, top + 1, (4, 5, 6)).astype(f"uint{top.bit_length()}")
    )
    image = tv_tensors.Image(torch.from_numpy(values))
    target = Instances.empty((5, 6))
    torch.manual_seed(7)
    got, same = IntensityJitter(brightness=0.3, contrast=0.5, gamma=1.0)(image, target)
    torch.manual_seed(7)
    _, log_g, c, b = (
        float(torch.empty(()).uniform_(*limits))
        for limits in ((0, 1), (-math.log(2), math.log(2)), (0.5, 1.5), (-0.3, 0.3))
    )
    x = (values.astype(float) / top) ** math.exp(log_g)
    expected = np.clip(x.mean() + c * (x - x.mean()) + b, 0, 1) * top
    assert got.dtype == dtype
    assert same is target
    assert np.abs(got.numpy().astype(float) - expected).max() <= 0.5 + 1e-6
    assert not torch.equal(got, image)


def test_no_jitter_changes_nothing():
    image, target = scene()
    assert torch.equal(IntensityJitter(0, 0, 0)(image, target)[0], image)
    assert IntensityJitter(p=0)(image, target)[0] is image


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma"])
def test_jitter_refuses(name):
    with pytest.raises(ValueError, match=rf"{name} must be.*-0\.5"):
        IntensityJitter(**{name: -0.5})
