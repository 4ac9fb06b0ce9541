"""pix2pix's losses against the formulas of the paper in float64."""

import math

import numpy as np
import pytest
import torch

from instseg.losses.pix2pix import discriminator_loss, generator_loss, image_l1_loss


def d(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_adversarial_losses_are_the_papers():
    real, fake = [2.0, -1.0, 0.5], [[0.3, -2.0], [1.5, 0.0]]
    flat = [logit for row in fake for logit in row]
    objective = sum(math.log(d(r)) for r in real) / 3
    objective += sum(math.log(1 - d(f)) for f in flat) / 4
    found = discriminator_loss(torch.tensor(real), torch.tensor(fake))
    assert found.item() == pytest.approx(-objective / 2, rel=1e-6)
    expected = -sum(math.log(d(f)) for f in flat) / 4
    assert generator_loss(torch.tensor(fake)).item() == pytest.approx(expected, rel=1e-6)


def test_a_discriminator_that_cannot_tell():
    zero = torch.zeros(2, 1, 3, 3)
    assert discriminator_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certainty_is_finite(dtype):
    sure = torch.full((2, 3), 1e4, dtype=dtype, requires_grad=True)
    right, wrong = discriminator_loss(sure, -sure), discriminator_loss(-sure, sure)
    assert right.item() == 0
    assert wrong.item() == pytest.approx(1e4, rel=0.01)
    assert generator_loss(sure).item() == 0
    (right + wrong + generator_loss(-sure)).backward()
    assert right.dtype == torch.float32
    assert sure.grad.isfinite().all()


def test_l1_counts_own_pixels_and_images_alike():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 4, 5))
    sizes = [(4, 5), (2, 3)]
    expected = [np.abs(a[i] - b[i])[:, :h, :w].mean() for i, (h, w) in enumerate(sizes)]
    found = image_l1_loss(torch.from_numpy(a), torch.from_numpy(b), sizes)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert image_l1_loss(torch.from_numpy(a), torch.from_numpy(a), sizes).item() == 0
