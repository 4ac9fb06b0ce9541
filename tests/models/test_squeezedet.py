from __future__ import annotations

import math

import pytest
import torch
import torchvision.models as tv
from torch import nn

from instseg.models.backbones.squeezenet import SqueezeNet
from instseg.models.detection.squeezedet import KITTI_ANCHORS, SqueezeDetHead, squeezedet
from instseg.models.heads.squeezedet import ConvDet
from instseg.structures import ImageBatch, Instances

from .grid_reference import (
    NUM_CLASSES,
    SIZE,
    Fixed,
    around,
    batch_of,
    cross_entropy,
    history,
    iou,
    mostly_in,
    objects_of,
    scene,
    sigmoid,
)

ANCHORS = [(34.0, 28.0), (12.0, 40.0)]
GRID = (6, 8)
FEATURES = [torch.zeros(4, 1, *GRID)]


def head_saying(raw: torch.Tensor, anchors=ANCHORS, **options) -> SqueezeDetHead:
    head = SqueezeDetHead(ConvDet(1, raw.shape[-1] - 5, len(anchors)), anchors, **options)
    head.predictor = Fixed(raw)
    return head


def random_raw() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (4, GRID[0] * GRID[1] * len(ANCHORS), 5 + NUM_CLASSES)
    raw = torch.randn(shape, generator=generator)
    raw[..., :4] *= 0.3
    return raw


def anchors_in_order() -> list[tuple[float, float, float, float]]:
    """x, y, w, h: cells of 16 pixels row by row, shapes innermost."""
    return [
        (16 * column + 8, 16 * row + 8, *shape)
        for row in range(GRID[0])
        for column in range(GRID[1])
        for shape in ANCHORS
    ]


def decoded(raw: list[float], anchor: tuple[float, float, float, float]) -> list[float]:
    x, y, w, h = anchor
    return around(x + w * raw[0], y + h * raw[1], w * math.exp(raw[2]), h * math.exp(raw[3]))


def reference_losses(raw, targets) -> tuple[list[float], dict[str, int]]:
    """Equation 3 in float64, and how often each rule was at work."""
    positives, negatives = [], []
    seen = {"lost": 0, "ignored": 0}
    for prediction, target in zip(raw.double().tolist(), targets, strict=True):
        objects, crowds = objects_of(target)
        wish = {}
        for gt, label in objects:
            overlaps = [iou(around(*a), gt) for a in anchors_in_order()]
            best = overlaps.index(max(overlaps))
            seen["lost"] += best in wish
            if best not in wish or max(overlaps) > wish[best][0]:
                wish[best] = (max(overlaps), gt, label)
        for k, (t, anchor) in enumerate(zip(prediction, anchors_in_order(), strict=True)):
            if k in wish:
                positives.append((t, anchor, *wish[k][1:]))
            elif mostly_in(around(*anchor), crowds):
                seen["ignored"] += 1
            else:
                negatives.append(sigmoid(t[4]) ** 2)
    box = confidence = classes = 0.0
    for t, anchor, gt, label in positives:
        x, y, w, h = anchor
        wanted = [
            ((gt[0] + gt[2]) / 2 - x) / w,
            ((gt[1] + gt[3]) / 2 - y) / h,
            math.log((gt[2] - gt[0]) / w),
            math.log((gt[3] - gt[1]) / h),
        ]
        box += sum((a - b) ** 2 for a, b in zip(t[:4], wanted, strict=True))
        confidence += (sigmoid(t[4]) - iou(decoded(t, anchor), gt)) ** 2
        classes += cross_entropy(t[5:], label)
    n = len(positives)
    objectness = 75 * confidence / n + 100 * sum(negatives) / len(negatives)
    return [5 * box / n, objectness, classes / n], seen


def test_decoding_is_that_of_the_paper():
    raw = random_raw()
    head = head_saying(raw)
    boxes = head.box_coder.decode(raw[..., :4], head.make_anchors(GRID))
    for k, anchor in enumerate(anchors_in_order()):
        expected = decoded(raw[2, k].double().tolist(), anchor)
        assert boxes[2, k].tolist() == pytest.approx(expected, abs=1e-4)


def test_losses_are_those_of_a_loop():
    raw, targets = random_raw(), scene()
    expected, seen = reference_losses(raw, targets)
    assert min(seen.values()) > 0
    losses = head_saying(raw).loss(batch_of(targets), FEATURES, targets)
    assert list(losses) == ["loss_box_reg", "loss_objectness", "loss_classifier"]
    assert [v.item() for v in losses.values()] == pytest.approx(expected, rel=1e-4)


def test_losses_hand_worked():
    """Two cells with one anchor of 16 x 16 each, all outputs 0.

    The object [4, 0, 20, 16] overlaps the first by 192/320 = 0.6 and the second by 64/448. Its
    centre is 4 pixels, a quarter of the anchor, to the right; the confidence 0.5 should be 0.6, and
    0 for the other anchor.
    """
    head = head_saying(torch.zeros(1, 2, 7), anchors=[(16, 16)])
    batch = ImageBatch(torch.zeros(1, 3, 16, 32), [(16, 32)])
    target = Instances((16, 32), torch.tensor([[4.0, 0, 20, 16]]), torch.tensor([1]))
    losses = head.loss(batch, [torch.zeros(1, 1, 1, 2)], [target])
    assert losses["loss_box_reg"].item() == pytest.approx(5 / 16)
    assert losses["loss_objectness"].item() == pytest.approx(75 * 0.01 + 100 * 0.25)
    assert losses["loss_classifier"].item() == pytest.approx(math.log(2))


def test_an_object_that_no_anchor_overlaps_trains_nothing():
    raw = torch.zeros(1, 2, 7)
    target = Instances((16, 32), torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([1]))
    assigned = head_saying(raw, anchors=[(4, 4)]).assign(raw, (1, 2), [target])
    assert len(assigned.positive) == 0
    assert assigned.negative.all()


def test_an_anchor_is_found_as_its_best_class_alone():
    raw = torch.full((1, 96, 8), -20.0)
    raw[0, 20] = torch.tensor([0, 0, 0, 0, math.log(9), *torch.tensor([0.3, 0.6, 0.1]).log()])
    head = head_saying(raw, score_threshold=0.01)
    batch = ImageBatch(torch.zeros(1, 3, *SIZE), [SIZE])
    (found,) = head.detect(batch, [torch.zeros(1, 1, *GRID)])
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.54])
    # Anchor 0 of the cell at row 1, column 2: 34 x 28 around (40, 24).
    assert found.boxes[0].tolist() == pytest.approx([23, 10, 57, 38])


def test_wrong_anchors_are_named():
    with pytest.raises(ValueError, match="there are 2 anchors, but the predictor is made for 9"):
        SqueezeDetHead(ConvDet(8, 3, 9), ANCHORS)


class TestSqueezeNet:
    @pytest.mark.parametrize(("version", "published"), [("1_0", 1_248_424), ("1_1", 1_235_496)])
    def test_parameters(self, version, published):
        """Torchvision's, without the last convolution of 512 to 1000."""
        with torch.device("meta"):
            backbone = SqueezeNet(version, extra_fires=False)
            maps = backbone(torch.zeros(1, 3, 64, 96))
        count = sum(p.numel() for p in backbone.parameters())
        assert count == published - (512 * 1000 + 1000)
        assert [m.shape for m in maps] == [(1, 512, 4, 6)]
        assert (backbone.channels, backbone.strides) == ([512], [16])

    def test_squeezedet_has_the_papers_size(self):
        """Table 1: 7.9 MB, with K = 9 anchors and the 3 classes of KITTI."""
        with torch.device("meta"):
            model = squeezedet(3)
        count = sum(p.numel() for p in model.parameters())
        fires = 512 * 96 + 96 + 768 * 96 + 96 + 2 * (96 * 384 + 384 + 96 * 384 * 9 + 384)
        convdet = 768 * 9 * (9 * 8) + 9 * 8
        assert count == 1_235_496 - 513_000 + fires + convdet
        assert count * 4 / 2**20 == pytest.approx(7.9, abs=0.05)
        assert len(KITTI_ANCHORS) == 9

    def test_map_is_torchvisions_with_one_more_row_and_column(self):
        theirs = tv.squeezenet1_1(weights=None).eval()
        backbone = SqueezeNet("1_1", extra_fires=False).eval()
        backbone.load_classifier(theirs.state_dict())
        x = torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            (ours,), wanted = backbone(x), theirs.features(x)
        assert ours.shape[-2:] == (14, 14)
        assert wanted.shape[-2:] == (13, 13)
        # Farther to the right and bottom, windows reach what only one of the two has.
        torch.testing.assert_close(ours[..., :6, :6], wanted[..., :6, :6])

    @pytest.mark.parametrize("size", [(16, 16), (32, 80)])
    @pytest.mark.parametrize("version", ["1_0", "1_1"])
    def test_exactly_one_sixteenth(self, version, size):
        with torch.device("meta"):
            (out,) = SqueezeNet(version)(torch.zeros(1, 3, *size))
        assert out.shape == (1, 768, size[0] // 16, size[1] // 16)

    def test_wrong_weights_and_versions_are_named(self):
        state = tv.squeezenet1_0(weights=None).state_dict()
        with pytest.raises(ValueError, match=r"not of SqueezeNet 1\.1: no key features\.6"):
            SqueezeNet("1_1").load_classifier(state)
        with pytest.raises(ValueError, match="version must be '1_0' or '1_1', got '2'"):
            SqueezeNet("2")

    def test_weights_without_the_extra_fires_fit(self):
        backbone = SqueezeNet("1_1")
        before = backbone.added[0].squeeze.weight.clone()
        state = tv.squeezenet1_1(weights=None).state_dict()
        backbone.load_classifier(state)
        assert torch.equal(backbone.features[0].weight, state["features.0.weight"])
        assert torch.equal(backbone.added[0].squeeze.weight, before)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return squeezedet(NUM_CLASSES)


def test_loss_falls(model):
    values = history(model)
    assert values[-1] < 0.8 * values[0]
