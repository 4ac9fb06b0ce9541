"""The planar layout of finished images, against numpy."""

import numpy as np
import pytest
import torch

from instseg.data.transforms.layout import planar


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("layout", ["planar", "interleaved", "mirrored", "cropped", "one row"])
def test_planes_hold_the_pixels_and_nothing_else(dtype, channels, layout):
    rng = np.random.default_rng(channels)
    size = (1, 9) if layout == "one row" else (7, 9)
    truth = rng.integers(0, np.iinfo(dtype).max, (channels, *size)).astype(dtype)
    image = torch.from_numpy(truth.copy())
    if layout != "planar":
        image = torch.from_numpy(truth.transpose(1, 2, 0).copy()).permute(2, 0, 1)
    if layout == "mirrored":
        image, truth = image.flip(2), truth[:, :, ::-1]
    if layout == "cropped":
        image, truth = image[:, 1:5, 2:], truth[:, 1:5, 2:]
    made = planar(image)
    assert np.array_equal(made.numpy(), truth)
    assert made.is_contiguous()
    assert made.untyped_storage().nbytes() == made.nbytes


def test_rows_of_a_planar_image_do_not_hold_the_rest():
    image = torch.arange(60, dtype=torch.uint8).reshape(1, 10, 6)
    made = planar(image[:, 2:4])
    assert made.tolist() == [[list(range(12, 18)), list(range(18, 24))]]
    assert made.untyped_storage().nbytes() == 12
