from __future__ import annotations

import pytest
import torch
from torch import nn

from instseg.models.backbones.darknet import Darknet19, YOLOv1Backbone, darknet_conv

# Table 6 of YOLOv2 without its last layer: kernel size, input and output channels.
TABLE_6 = [
    *[(3, 3, 32), (3, 32, 64), (3, 64, 128), (1, 128, 64), (3, 64, 128)],
    *[(3, 128, 256), (1, 256, 128), (3, 128, 256)],
    *[(3, 256, 512), (1, 512, 256), (3, 256, 512), (1, 512, 256), (3, 256, 512)],
    *[(3, 512, 1024), (1, 1024, 512), (3, 512, 1024), (1, 1024, 512), (3, 512, 1024)],
]


def test_darknet19_is_table_6():
    with torch.device("meta"):
        backbone = Darknet19()
        maps = backbone(torch.zeros(1, 3, 64, 96))
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size[0], m.in_channels, m.out_channels) for m in convolutions] == TABLE_6
    count = sum(k * k * i * o + 2 * o for k, i, o in TABLE_6)
    assert sum(p.numel() for p in backbone.parameters()) == count == 19_817_376
    assert [m.shape for m in maps] == [(1, 512, 4, 6), (1, 1024, 2, 3)]
    assert (backbone.channels, backbone.strides) == ([512, 1024], [16, 32])


def test_yolov1_has_stride_64():
    with torch.device("meta"):
        backbone = YOLOv1Backbone()
        (out,) = backbone(torch.zeros(1, 3, 448, 448))
    assert out.shape == (1, 1024, 7, 7)
    assert (backbone.channels, backbone.strides) == ([1024], [64])


def test_block_is_convolution_norm_leaky():
    block = darknet_conv(2, 3, 3).eval()
    conv, norm = block[0], block[1]
    assert conv.bias is None
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(1, 2, 4, 4)
    y = (conv(x) - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[
        :, None, None
    ]
    torch.testing.assert_close(block(x), torch.where(y > 0, y, 0.1 * y))


@pytest.mark.parametrize(("network", "part"), [(Darknet19, ""), (YOLOv1Backbone, "features.")])
class TestBoth:
    def test_width_scales_channels(self, network, part):
        backbone = network(width=1 / 16)
        assert backbone.channels[-1] == 64

    @pytest.mark.parametrize("width", [0, -1.0])
    def test_width_must_be_positive(self, network, part, width):
        with pytest.raises(ValueError, match=f"width must be positive, got {width}"):
            network(width=width)

    def test_classifier_weights_load(self, network, part):
        torch.manual_seed(0)
        source, backbone = network(width=1 / 32), network(width=1 / 32)
        state = {k: v for k, v in source.state_dict().items() if k.startswith(part)}
        state["classifier.weight"] = torch.zeros(10, 32, 1, 1)
        backbone.load_classifier(state)
        loaded = backbone.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in state.items() if k in loaded)
        assert sum(k.startswith("classifier") for k in loaded) == 0

    def test_weights_of_another_width_are_named(self, network, part):
        state = {k: v for k, v in network(width=1 / 16).state_dict().items() if k.startswith(part)}
        with pytest.raises(ValueError, match=r"these weights are not of .* there and .* here"):
            network(width=1 / 32).load_classifier(state)
