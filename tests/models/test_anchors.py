from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionGenerator
from torchvision.models.detection.image_list import ImageList

from instseg.models.anchors import AnchorGenerator

SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
RATIOS = (0.5, 1.0, 2.0)
STRIDES = (4, 8, 16, 32, 64)


def loop(
    sizes: tuple[float, ...], stride: int, height: int, width: int, ratios=RATIOS
) -> list[list[float]]:
    """From the definition: area size^2, height / width = ratio, centred on (j, i) * stride."""
    anchors = []
    for i in range(height):
        for j in range(width):
            for ratio in ratios:
                for size in sizes:
                    w = math.sqrt(size * size / ratio)
                    h = w * ratio
                    x, y = j * stride, i * stride
                    anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return anchors


def test_hand_worked():
    generator = AnchorGenerator([[10.0]], [1.0, 4.0], [8])
    (anchors,) = generator([(1, 2)], (8, 16))
    # Ratio 4 at area 100: 5 wide and 20 high.
    expected = [[-5, -5, 5, 5], [-2.5, -10, 2.5, 10], [3, -5, 13, 5], [5.5, -10, 10.5, 10]]
    assert anchors.tolist() == expected
    assert anchors.dtype == torch.float32
    assert generator.num_anchors == 2


def test_equal_to_the_definition_on_every_level():
    sizes = ((16.0, 20.0), (33.0, 47.0))
    generator = AnchorGenerator(sizes, RATIOS, [4, 8])
    shapes = [(3, 5), (2, 3)]
    anchors = generator(shapes, (12, 20))
    assert generator.num_anchors == 6
    for level, stride, shape, got in zip(sizes, (4, 8), shapes, anchors, strict=True):
        expected = torch.tensor(loop(level, stride, *shape), dtype=torch.float64)
        assert got.shape == (shape[0] * shape[1] * 6, 4)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


def level_sizes(image: tuple[int, int]) -> list[tuple[int, int]]:
    """Maps of a backbone with stride-2 convolutions (sizes rounded up) and one pooled level."""
    return [(math.ceil(image[0] / s), math.ceil(image[1] / s)) for s in STRIDES]


def torchvision_anchors(image: tuple[int, int], shapes: list[tuple[int, int]]) -> Tensor:
    generator = TorchvisionGenerator(SIZES, (RATIOS,) * len(SIZES))
    batch = ImageList(torch.zeros(1, 3, *image), [image])
    (anchors,) = generator(batch, [torch.zeros(1, 1, *s) for s in shapes])
    return anchors


@pytest.mark.parametrize("image", [(64, 128), (224, 320), (800, 1344), (32, 96)])
def test_torchvision_convention_is_torchvisions_own(image):
    shapes = level_sizes(image)
    anchors = AnchorGenerator(SIZES, RATIOS, STRIDES, torchvision=True)(shapes, image)
    assert torch.equal(torch.cat(anchors), torchvision_anchors(image, shapes))


def test_only_torchvision_takes_strides_from_rounded_maps():
    """224 px high: the pooled level has 4 rows, and torchvision makes its stride 224 // 4 = 56."""
    image = (224, 320)
    shapes = level_sizes(image)
    assert shapes[-1] == (4, 5)
    theirs = AnchorGenerator(SIZES, RATIOS, STRIDES, torchvision=True)(shapes, image)[-1]
    ours = AnchorGenerator(SIZES, RATIOS, STRIDES)(shapes, image)[-1]
    for anchors, stride in ((theirs, 56), (ours, 64)):
        middle = (anchors[:, 1] + anchors[:, 3]) / 2
        rows = middle.reshape(4, 5, 3)
        expected = torch.arange(4.0)[:, None, None] * stride
        torch.testing.assert_close(rows, expected.expand(4, 5, 3), rtol=0, atol=1e-3)


def test_corners_are_rounded_for_torchvision_alone():
    exact = AnchorGenerator([[32.0]], [0.5], [16])([(1, 1)], (16, 16))[0]
    rounded = AnchorGenerator([[32.0]], [0.5], [16], torchvision=True)([(1, 1)], (16, 16))[0]
    # Half of 32 * sqrt(2) and of 32 / sqrt(2).
    assert exact[0].tolist() == pytest.approx([-22.627417, -11.313708, 22.627417, 11.313708])
    assert rounded.tolist() == [[-23, -11, 23, 11]]


def test_no_positions_no_anchors():
    (anchors,) = AnchorGenerator([[8.0]], RATIOS, [4])([(0, 3)], (0, 12))
    assert anchors.shape == (0, 4)


def test_cells_follow_the_module_but_stay_out_of_checkpoints():
    generator = AnchorGenerator(SIZES, RATIOS, STRIDES)
    assert not generator.state_dict()
    moved = generator.to("meta")([(2, 2)] * 5, (8, 8))
    assert all(a.device.type == "meta" for a in moved)


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="anchor sizes for 2 levels, but 3 levels"):
        AnchorGenerator([[8.0], [16.0]], RATIOS, [4, 8, 16])
