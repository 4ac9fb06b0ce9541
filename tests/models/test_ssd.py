from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.models.backbones.vgg import SSDVGG
from instseg.models.default_boxes import (
    DefaultBoxes,
    ssd300_default_boxes,
    ssd512_default_boxes,
)
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.ssd import (
    VGG_MEAN,
    VGG_STD,
    SSDHead,
    ssd300_vgg16,
    ssd512_vgg16,
    ssdlite320_mobilenet_v3_large,
)
from instseg.models.heads.ssd import SSDPredictor
from instseg.models.necks.ssd import L2Norm, SSDExtraLayers
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch
from tests.contracts import reference

NUM_CLASSES = 3


def narrow(size: int) -> OneStageDetector:
    """SSD300 or SSD512 with an eighth of VGG's channels."""
    torch.manual_seed(0)
    backbone = SSDVGG(width=8)
    neck = SSDExtraLayers(backbone.channels, size)
    boxes = ssd300_default_boxes() if size == 300 else ssd512_default_boxes()
    head = SSDHead(boxes, SSDPredictor(neck.channels, boxes.num_boxes, NUM_CLASSES))
    return OneStageDetector(
        Preprocess(VGG_MEAN, VGG_STD, 1, min_size=(size, size)), backbone, neck, head
    )


def lite() -> OneStageDetector:
    torch.manual_seed(0)
    return ssdlite320_mobilenet_v3_large(NUM_CLASSES)


MODELS = {"ssd300": lambda: narrow(300), "ssd512": lambda: narrow(512), "ssdlite": lite}


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("ssd300", 300, 8732), ("ssd512", 512, 24564), ("ssdlite", 320, 3234)],
)
@torch.inference_mode()
def test_the_maps_have_the_papers_number_of_boxes(name, size, count):
    model = MODELS[name]().eval()
    features = model.neck(model.backbone(torch.zeros(1, 3, size, size)))
    assert [f.shape[1] for f in features] == model.neck.channels
    logits, offsets = model.head.predictor(features)
    assert logits.shape == (1, count, NUM_CLASSES + 1)
    assert offsets.shape == (1, count, 4)


@pytest.mark.parametrize(("make", "size"), [(ssd300_vgg16, 300), (ssd512_vgg16, 512)])
def test_vgg_builders_are_of_the_papers_size(make, size):
    """26.3 and 27.2 million parameters for the 20 classes of VOC: counted from figure 2."""
    with torch.device("meta"):
        model = make(20)
    channels = [512, 1024, 512, 256, 256, 256, 256][: 6 if size == 300 else 7]
    boxes = [4, 6, 6, 6, 4, 4] if size == 300 else [4, 6, 6, 6, 6, 4, 4]
    vgg16 = 14_714_688  # the convolutions of VGG-16
    fc = 512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024
    extra = 1024 * 256 + 256 + 256 * 512 * 9 + 512 + 512 * 128 + 128 + 128 * 256 * 9 + 256
    extra += 2 * (256 * 128 + 128 + 128 * 256 * 9 + 256)
    extra += 256 * 128 + 128 + 128 * 256 * 16 + 256 if size == 512 else 0
    predictors = sum((9 * c + 1) * n * (21 + 4) for c, n in zip(channels, boxes, strict=True))
    expected = vgg16 + fc + 512 + extra + predictors
    assert sum(p.numel() for p in model.parameters()) == expected
    assert expected == (26_285_486 if size == 300 else 27_188_676)


class Fixed(nn.Module):
    """A predictor that says what it is told."""

    class_layers = ()

    def __init__(self, num_boxes: list[int], logits: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.num_boxes = num_boxes
        self.outputs = logits, offsets

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.outputs


def decode(offsets: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Equation 2 with the variances 0.1 and 0.2, clipped to the image."""
    center, side = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    center = center + 0.1 * offsets[:2] * side
    side = side * np.exp(0.2 * offsets[2:])
    corners = np.concatenate([center - side / 2, center + side / 2])
    return corners.clip(0, [size[1], size[0]] * 2)


def test_detections_as_a_plain_loop():
    sizes = [(48, 64), (40, 50)]
    boxes = DefaultBoxes((64, 64), (0.3, 0.5, 0.9), [[2], [2, 3]], [8, None])
    features = [torch.zeros(2, 1, 6, 8), torch.zeros(2, 1, 3, 4)]
    batch = ImageBatch(torch.zeros(2, 3, 48, 64), sizes)
    defaults = boxes([(6, 8), (3, 4)], (48, 64)).double().numpy()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(defaults), NUM_CLASSES + 1, generator=generator)
    offsets = torch.randn(2, len(defaults), 4, generator=generator)
    head = SSDHead(
        boxes,
        Fixed([4, 6], logits, offsets),
        score_threshold=0.3,
        max_candidates=30,
        max_detections=25,
    )
    cut = False
    for b, found in enumerate(head.detect(batch, features)):
        exponents = np.exp(logits[b].double().numpy())
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        expected = []
        for c in range(NUM_CLASSES):
            chosen = [a for a in range(len(defaults)) if scores[a, c + 1] > 0.3]
            chosen.sort(key=lambda a: -scores[a, c + 1])
            cut |= len(chosen) > 30
            decoded = [
                decode(offsets[b, a].double().numpy(), defaults[a], sizes[b]) for a in chosen[:30]
            ]
            kept = [i for i, d in enumerate(decoded) if min(d[2:] - d[:2]) >= 0.01]
            decoded = np.stack([decoded[i] for i in kept])
            rated = np.array([scores[chosen[i], c + 1] for i in kept])
            expected += [(rated[i], c, decoded[i]) for i in reference.nms(decoded, rated, 0.45)]
        expected.sort(key=lambda e: -e[0])
        assert len(expected) > 25
        assert len(found) == 25
        for i, (score, label, box) in enumerate(expected[:25]):
            assert found.scores[i].item() == pytest.approx(score, rel=1e-5)
            assert found.labels[i] == label
            assert found.boxes[i].tolist() == pytest.approx(box.tolist(), abs=1e-3)
    assert cut  # more than 30 candidates of a class


def test_predictor_and_boxes_must_fit():
    boxes = ssd300_default_boxes()
    with pytest.raises(ValueError, match=r"predictor has \[4, 4\] boxes.*\[4, 6, 6, 6, 4, 4\]"):
        SSDHead(boxes, SSDPredictor([8, 8], [4, 4], 2))
    with pytest.raises(ValueError, match="in_channels has 3 maps, but num_boxes has 2"):
        SSDPredictor([8, 8, 8], [4, 4], 2)


def test_predictions_are_in_the_order_of_the_boxes():
    """Each default box's row is the convolution's output at its position."""
    predictor = SSDPredictor([2, 3], [1, 2], 4)
    features = [torch.randn(1, 2, 2, 3), torch.randn(1, 3, 1, 2)]
    logits, offsets = predictor(features)
    first, second = (conv(f) for conv, f in zip(predictor.logits, features, strict=True))
    assert torch.equal(logits[0, 4], first[0, :, 1, 1])
    assert torch.equal(logits[0, 6 + 3], second[0, 5:, 0, 1])
    boxes = predictor.offsets[1](features[1])
    assert torch.equal(offsets[0, 6 + 2], boxes[0, :4, 0, 1])


def test_l2_norm_by_hand():
    norm = L2Norm(2)
    assert norm.scale.tolist() == [20.0, 20.0]
    x = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    with torch.no_grad():
        norm.scale[1] = 10
        assert norm(x)[0, :, 0].tolist() == [[12.0, 0.0], [8.0, 0.0]]
        assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_extra_layers_name_what_is_too_small():
    neck = SSDExtraLayers([8, 16], 300)
    assert neck([torch.zeros(1, 8, 33, 33), torch.zeros(1, 16, 17, 17)])[-1].shape[-2:] == (1, 1)
    with pytest.raises(ValueError, match=r"\(16, 19\) is too small.*SSD300.*Preprocess's min_size"):
        neck([torch.zeros(1, 8, 38, 38), torch.zeros(1, 16, 16, 19)])
    with pytest.raises(ValueError, match=r"size must be one of \[300, 512\], got 320"):
        SSDExtraLayers([8, 16], 320)
