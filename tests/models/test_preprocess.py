from __future__ import annotations

import numpy as np
import pytest
import torch

from instseg.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_hand_worked():
    """(51 / 255 - 0.5) / 0.25 = -1.2 and (255 / 255 - 0.1) / 0.5 = 1.8."""
    image = torch.tensor([51, 255], dtype=torch.uint8)[:, None, None]
    batch = Preprocess((0.5, 0.1), (0.25, 0.5), size_divisor=1)([image])
    assert batch.tensor.flatten().tolist() == pytest.approx([-1.2, 1.8], rel=1e-6)
    assert batch.tensor.dtype == torch.float32
    assert batch.sizes == [(1, 1)]


def test_equal_to_a_loop_with_imagenets_figures():
    image = picture(3, 5, 7)
    got = Preprocess(size_divisor=1)([image]).tensor[0]
    for c, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        expected = (image[c].double().numpy() / 255 - mean) / std
        np.testing.assert_allclose(got[c].numpy(), expected, atol=1e-6)
    assert len(IMAGENET_MEAN) == len(IMAGENET_STD) == 3


@pytest.mark.parametrize(
    ("dtype", "values", "fractions"),
    [
        (torch.uint8, [0, 128, 255], [0, 128 / 255, 1]),
        (torch.uint16, [0, 32768, 65535], [0, 32768 / 65535, 1]),
        (torch.float32, [0.0, 0.5, 1.0], [0, 0.5, 1]),
        (torch.float16, [0.0, 0.5, 1.0], [0, 0.5, 1]),
        (torch.bfloat16, [0.0, 0.5, 1.0], [0, 0.5, 1]),
        pytest.param(
            torch.float64,
            [0.0, 0.5, 1.0],
            [0, 0.5, 1],
        ),
    ],
    ids=str,
)
def test_ranges_of_dtypes(dtype, values, fractions):
    image = torch.tensor(values).to(dtype)[None, None]
    batch = Preprocess((0.0,), (1.0,), size_divisor=1)([image])
    assert batch.tensor.dtype == torch.float32
    assert batch.tensor.flatten().tolist() == pytest.approx(fractions, abs=1e-7)


def test_small_uint16_values_are_not_lost():
    """12-bit pictures in 16-bit files: steps of 1 stay apart."""
    image = torch.arange(4096).to(torch.uint16).reshape(1, 64, 64)
    batch = Preprocess((0.0,), (1.0,), size_divisor=1)([image])
    restored = (batch.tensor * 65535).round().long().flatten()
    assert torch.equal(restored, torch.arange(4096))


@pytest.mark.parametrize(
    ("divisor", "padded"), [(1, (40, 33)), (8, (40, 40)), (32, (64, 64)), (64, (64, 64))]
)
def test_padding(divisor, padded):
    """Zeros at the right and bottom, after normalising: the mean colour, not black."""
    images = [picture(3, 40, 20), picture(3, 17, 33, seed=1)]
    preprocess = Preprocess(size_divisor=divisor)
    batch = preprocess(images)
    assert batch.tensor.shape == (2, 3, *padded)
    assert batch.sizes == [(40, 20), (17, 33)]
    for tensor, image, (height, width) in zip(batch.tensor, images, batch.sizes, strict=True):
        alone = Preprocess(size_divisor=1)([image]).tensor[0]
        assert torch.equal(tensor[:, :height, :width], alone)
        assert not tensor[:, height:].any()
        assert not tensor[:, :, width:].any()


def test_an_image_that_fits_is_not_padded():
    assert Preprocess(size_divisor=32)([picture(3, 64, 96)]).tensor.shape == (1, 3, 64, 96)


def test_images_of_several_dtypes_in_one_batch():
    image = picture(3, 8, 8)
    wide = (image.int() * 257).to(torch.uint16)
    batch = Preprocess()([image, wide, image / 255])
    torch.testing.assert_close(batch.tensor[0], batch.tensor[1])
    torch.testing.assert_close(batch.tensor[0], batch.tensor[2])


def test_the_given_images_are_left_alone():
    image = torch.rand(3, 8, 8)
    before = image.clone()
    Preprocess()([image])
    assert torch.equal(image, before)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_numbers_of_channels(channels):
    preprocess = Preprocess([0.5] * channels, [0.5] * channels)
    assert preprocess([picture(channels, 8, 8)]).tensor.shape == (1, channels, 32, 32)
    with pytest.raises(ValueError, match=rf"\[{channels}, H, W\], got \[3, 8, 8\]"):
        preprocess([picture(3, 8, 8)])


@pytest.mark.parametrize("shape", [(8, 8), (1, 3, 8, 8), (3, 0, 8), (3, 8, 0)])
def test_shapes_that_are_no_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \[3, H, W\], got"):
        Preprocess()([torch.zeros(3, 8, 8), torch.zeros(shape)])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64])
def test_dtypes_without_a_range_are_refused(dtype):
    with pytest.raises(ValueError, match=f"uint8, uint16 or floating, got {dtype}"):
        Preprocess()([torch.zeros(3, 8, 8, dtype=dtype)])


def test_figures_stay_out_of_checkpoints():
    assert not Preprocess().state_dict()
