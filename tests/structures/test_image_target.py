import pytest
import torch

from instseg.structures.image_target import ImageTarget


def test_values_in_the_unit_interval():
    eight = ImageTarget(torch.tensor([[[0, 51, 255]]], dtype=torch.uint8))
    sixteen = ImageTarget(torch.tensor([[[0, 13107, 65535]]]).to(torch.uint16))
    real = ImageTarget(torch.tensor([[[0.0, 0.2, 1.0]]], dtype=torch.float64))
    for target in (eight, sixteen, real):
        assert target.image_size == (1, 3)
        assert target.unit.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert real.unit.dtype == torch.float64
    assert eight.unit.dtype == sixteen.unit.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_resizing_by_half_takes_the_mean_of_the_triangle(dtype):
    """Antialiased bilinear by 1/2 weighs neighbours 1, 3, 3, 1; at the border without the outer."""
    values = torch.tensor([10.0, 20, 40, 80])
    wide = ImageTarget(values.expand(2, 3, 4).to(dtype))
    resized = wide.resized((3, 2))
    expected = torch.tensor([(3 * 10 + 3 * 20 + 40) / 7, (20 + 3 * 40 + 3 * 80) / 7])
    if dtype != torch.float32:
        expected = expected.round()
    assert resized.image.dtype == dtype
    assert resized.image_size == (3, 2)
    torch.testing.assert_close(resized.image.float(), expected.expand(2, 3, 2))


def test_the_same_size_and_device_keep_the_values():
    target = ImageTarget(torch.rand(1, 4, 5))
    assert target.resized((4, 5)) is target
    assert torch.equal(target.to("cpu").image, target.image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 5, dtype=torch.int64), "uint8, uint16 or floating, got torch.int64"),
        (torch.zeros(4, 5), r"\[C, H, W\], got \[4, 5\]"),
        (torch.zeros(3, 0, 5), r"\[C, H, W\], got \[3, 0, 5\]"),
    ],
)
def test_other_tensors_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        ImageTarget(image)
