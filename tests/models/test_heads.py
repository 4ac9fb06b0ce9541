from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead
from torchvision.models.detection.rpn import concat_box_prediction_layers

from instseg.models.heads import (
    BoxPredictor,
    ConvFCBoxBody,
    FCBoxBody,
    FCNMaskBody,
    MaskPredictor,
    RPNHead,
)


def randomise(module: nn.Module) -> None:
    """Weights and norm figures whose effect on the output is plain to see."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3)


def copy_in_order(target: nn.Module, source: nn.Module) -> None:
    """Both list their layers in the same order under other names."""
    theirs, ours = list(source.state_dict().values()), target.state_dict()
    target.load_state_dict(dict(zip(ours, theirs, strict=True)))


class TestRPNHead:
    @pytest.mark.parametrize("depth", [1, 2])
    @torch.no_grad()
    def test_equal_to_torchvision(self, depth):
        ours, theirs = RPNHead(6, 3, depth=depth), TorchvisionRPNHead(6, 3, depth)
        randomise(theirs)
        copy_in_order(ours, theirs)
        features = [torch.randn(2, 6, 5, 7), torch.randn(2, 6, 3, 4)]
        objectness, offsets = ours(features)
        assert [o.shape for o in objectness] == [(2, 105), (2, 36)]
        assert [o.shape for o in offsets] == [(2, 105, 4), (2, 36, 4)]
        wanted_objectness, wanted_offsets = concat_box_prediction_layers(*theirs(features))
        torch.testing.assert_close(torch.cat(objectness, 1).flatten(), wanted_objectness[:, 0])
        torch.testing.assert_close(torch.cat(offsets, 1).flatten(0, 1), wanted_offsets)

    @torch.no_grad()
    def test_order_is_row_column_anchor(self):
        """Outputs that spell their position: 100 row + 10 column + anchor, and the coordinate."""
        head = RPNHead(1, 3)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        head.conv[0][0].weight[0, 0, 1, 1] = 1.0
        head.objectness.weight.fill_(1.0)
        head.objectness.bias.copy_(torch.arange(3))
        head.offsets.weight.fill_(1.0)
        head.offsets.bias.copy_(torch.tensor([a + c / 10 for a in range(3) for c in range(4)]))
        position = 100.0 * torch.arange(2)[:, None] + 10.0 * torch.arange(4)
        (objectness,), (offsets,) = head([position[None, None]])
        rows = [(i, j, a) for i in range(2) for j in range(4) for a in range(3)]
        assert objectness[0].tolist() == [100 * i + 10 * j + a for i, j, a in rows]
        for got, (i, j, a) in zip(offsets[0].tolist(), rows, strict=True):
            assert got == pytest.approx([100 * i + 10 * j + a + c / 10 for c in range(4)])

    def test_initial_weights(self):
        """N(0, 0.01^2), so that all anchors begin near probability 1/2 and offset 0."""
        head = RPNHead(128, 3, depth=2)
        for layer in (head.conv[0][0], head.conv[1][0], head.objectness, head.offsets):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15)
            assert not layer.bias.any()


class TestBoxBodies:
    @torch.no_grad()
    def test_fc_equals_torchvision(self):
        ours, theirs = FCBoxBody(4, 5, 16), TwoMLPHead(4 * 25, 16)
        copy_in_order(ours, theirs)
        x = torch.randn(6, 4, 5, 5)
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours.channels == 16

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, None], ids=["norm", "plain"])
    @torch.no_grad()
    def test_conv_fc_equals_torchvision(self, norm):
        ours = ConvFCBoxBody(4, 5, (6, 8), 16, norm=norm).eval()
        theirs = FastRCNNConvFCHead((4, 5, 5), [6, 8], [16], norm).eval()
        randomise(theirs)
        copy_in_order(ours, theirs)
        x = torch.randn(6, 4, 5, 5)
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours.channels == 16

    def test_conv_fc_as_published(self):
        body = ConvFCBoxBody(256, 7)
        assert [block[0].out_channels for block in body.convs] == [256] * 4
        assert all(isinstance(block[1], nn.BatchNorm2d) for block in body.convs)
        assert body.fc.weight.shape == (1024, 256 * 49)

    @pytest.mark.parametrize("body", [FCBoxBody(4, 5, 16), ConvFCBoxBody(4, 5, (6,), 16)])
    def test_no_rois(self, body):
        assert body.eval()(torch.zeros(0, 4, 5, 5)).shape == (0, 16)


class TestBoxPredictor:
    @torch.no_grad()
    def test_equal_to_torchvision(self):
        ours, theirs = BoxPredictor(8, 5), FastRCNNPredictor(8, 6)
        copy_in_order(ours, theirs)
        x = torch.randn(7, 8)
        logits, offsets = ours(x)
        wanted_logits, wanted_offsets = theirs(x)
        assert logits.shape == (7, 6)
        assert offsets.shape == (7, 6, 4)
        torch.testing.assert_close(logits, wanted_logits)
        torch.testing.assert_close(offsets, wanted_offsets.reshape(7, 6, 4))

    def test_no_rois(self):
        logits, offsets = BoxPredictor(8, 5)(torch.zeros(0, 8))
        assert logits.shape == (0, 6)
        assert offsets.shape == (0, 6, 4)

    def test_initialised_as_torchvision_does(self):
        ours, theirs = BoxPredictor(512, 20), FastRCNNPredictor(512, 21)
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert own.std().item() == pytest.approx(other.std().item(), rel=0.25)


class TestMaskHead:
    @pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["plain", "norm"])
    @torch.no_grad()
    def test_body_equals_torchvision(self, norm):
        ours = FCNMaskBody(4, (6, 8), norm=norm).eval()
        theirs = MaskRCNNHeads(4, (6, 8), 1, norm_layer=norm).eval()
        randomise(theirs)
        copy_in_order(ours, theirs)
        x = torch.randn(5, 4, 7, 7)
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours.channels == 8

    @torch.no_grad()
    def test_predictor_takes_the_class_channel_of_torchvisions(self):
        ours, theirs = MaskPredictor(8, 4, 6), MaskRCNNPredictor(8, 6, 5)
        randomise(theirs)
        copy_in_order(ours, theirs)
        x, labels = torch.randn(5, 8, 7, 7), torch.tensor([0, 3, 1, 3, 2])
        got = ours(x, labels)
        assert got.shape == (5, 14, 14)
        # Channel 0 is the background, channel k + 1 class k.
        torch.testing.assert_close(got, theirs(x)[torch.arange(5), labels + 1])

    def test_no_rois(self):
        body, predictor = FCNMaskBody(4, (6,)), MaskPredictor(6, 3, 8)
        labels = torch.zeros(0, dtype=torch.int64)
        assert predictor(body(torch.zeros(0, 4, 7, 7)), labels).shape == (0, 14, 14)

    def test_only_channels_of_present_classes_are_trained(self):
        predictor = MaskPredictor(4, 3, 6)
        predictor(torch.randn(4, 4, 5, 5), torch.tensor([0, 2, 2, 0])).square().sum().backward()
        trained = predictor.logits.weight.grad.flatten(1).any(dim=1)
        assert trained.tolist() == [False, True, False, True]
        assert predictor.logits.bias.grad.bool().tolist() == [False, True, False, True]
        assert predictor.upsample.weight.grad.any()

    def test_initial_weights(self):
        """The convolutions keep variance through ReLU; the last one is torchvision's."""
        body, predictor = FCNMaskBody(64, (64, 64)), MaskPredictor(64, 80, 64)
        for block in body:
            expected = math.sqrt(2 / (64 * 9))
            assert block[0].weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not block[0].bias.any()
        theirs = MaskRCNNPredictor(64, 64, 81).mask_fcn_logits.weight
        assert predictor.logits.weight.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
        assert not predictor.logits.bias.any()
        assert not predictor.upsample.bias.any()
