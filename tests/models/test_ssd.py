from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, vgg

from instseg.models.backbones.mobilenet import MobileNetV3Large
from instseg.models.backbones.vgg import SSDVGG, VGG
from instseg.models.batch_norm import BatchNorm2d
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
from instseg.structures import ImageBatch, Instances
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


@pytest.fixture(params=list(MODELS))
def model(request) -> OneStageDetector:
    return MODELS[request.param]()


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator).byte()


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


def square(size: tuple[int, int], *, crowd: bool = False) -> Instances:
    boxes = torch.tensor([[8.0, 8, 40, 40]])
    return Instances(size, boxes, torch.tensor([1]), is_crowd=torch.tensor([crowd]))


def many(size: tuple[int, int]) -> Instances:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2000, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 0.9
    side = 1 + torch.rand(2000, 2, generator=generator) * 30
    return Instances(size, torch.cat([corner, corner + side], 1), torch.zeros(2000).long())


TARGETS = {
    "one": square,
    "crowd": lambda size: square(size, crowd=True),
    "none": Instances.empty,
    "many": many,
}


@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("name", ["ssd300", "ssdlite"])
def test_losses_and_gradients(name, kind):
    """Of one image: the last map of SSDlite has a single value a channel."""
    model = MODELS[name]().train()
    size = (300, 260)
    losses = model([image(*size)], [TARGETS[kind](size)])
    assert set(losses) == {"loss_classifier", "loss_box_reg"}
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.isfinite()
        assert (loss > 0) == (kind in ("one", "many"))
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("size", [(300, 300), (97, 411), (1, 5)])
@torch.inference_mode()
def test_detections_of_any_size(model, size):
    model.head.score_threshold = 0.2
    model.head.max_candidates = 10**6  # untrained, boxes in the padding score as high as others
    (found,) = model.eval()([image(*size)])
    assert found.image_size == size
    assert len(found) > 0
    assert found.boxes.min() >= 0
    assert found.boxes[:, 0::2].max() <= size[1]
    assert found.boxes[:, 1::2].max() <= size[0]
    assert ((found.boxes[:, 2:] - found.boxes[:, :2]) > 0).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert 0 <= found.labels.min() <= found.labels.max() < NUM_CLASSES


def test_bfloat16_autocast(model):
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        losses = model.train()([image(64, 64)], [square((64, 64))])
        (found,) = model.eval()([image(64, 64)])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert found.boxes.dtype == found.scores.dtype == torch.float32


def test_the_network_has_one_graph():
    model = narrow(300)

    @torch.inference_mode()
    def network(x: Tensor) -> tuple[Tensor, Tensor]:
        return model.head.predictor(model.neck(model.backbone(x)))

    x = model.eval().preprocess([image(64, 64)]).tensor
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for got, expected in zip(compiled(x), network(x), strict=True):
        assert torch.equal(got, expected)


class Fixed(nn.Module):
    """A predictor that says what it is told."""

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


@pytest.mark.parametrize(
    ("depth", "batch_norm"), [(11, False), (13, True), (16, True), (19, False)]
)
@torch.inference_mode()
def test_vgg_is_torchvisions(depth, batch_norm):
    """Its configurations A to E: the maps before each pool, and the last pool's."""
    letter = {11: "A", 13: "B", 16: "D", 19: "E"}[depth]
    plan = [c if c == "M" else c // 16 for c in vgg.cfgs[letter]]
    theirs = nn.ModuleDict({"features": vgg.make_layers(plan, batch_norm=batch_norm)}).eval()
    ours = VGG(depth, batch_norm=batch_norm, width=4).eval()
    ours.load_classifier({**theirs.state_dict(), "classifier.0.bias": torch.zeros(2)})
    x = torch.randn(1, 3, 70, 65)
    expected, y = [], x
    for layer in theirs["features"]:
        if isinstance(layer, nn.MaxPool2d):
            expected.append(y)
        y = layer(y)
    for got, wanted in zip(ours(x), [*expected, y], strict=True):
        assert torch.equal(got, wanted)
    assert [f.shape[1] for f in ours(x)] == ours.channels
    assert [f.shape[2] for f in ours(x)] == [70 // s for s in ours.strides]


def test_vgg_freezes_its_first_stages():
    model = VGG(11, batch_norm=True, width=4, freeze_at=2).train()
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "1", "4", "5"}
    assert not model.features[5].training
    assert model.features[9].training


@torch.inference_mode()
def test_ssd_vgg_starts_from_the_classifier():
    """fc6 looks at every third pixel of the 7x7 ones, over four times as many outputs."""
    backbone = SSDVGG(width=2)
    features = {k: torch.randn_like(v) for k, v in VGG(16, width=2).state_dict().items()}
    weights = {
        **features,
        "classifier.0.weight": torch.randn(128, 16 * 49),
        "classifier.0.bias": torch.randn(128),
        "classifier.3.weight": torch.randn(128, 128),
        "classifier.3.bias": torch.randn(128),
    }
    backbone.load_classifier(weights)
    full = weights["classifier.0.weight"].view(128, 16, 7, 7)
    assert backbone.fc6.weight[5, 3, 2, 1] == full[20, 3, 6, 3]
    assert backbone.fc6.bias[5] == weights["classifier.0.bias"][20]
    assert backbone.fc7.weight[5, 7, 0, 0] == weights["classifier.3.weight"][20, 28]
    # At the middle of a 13 x 13 map, the dilated kernel sees what a 7x7 one of stride 2 sees.
    x = torch.randn(1, 16, 13, 13)
    seen = torch.zeros(128, 16, 13, 13)
    seen[:, :, ::6, ::6] = full[:, :, ::3, ::3]
    expected = F.conv2d(x, seen, weights["classifier.0.bias"])[0, ::4, 0, 0]
    assert torch.allclose(backbone.fc6(x)[0, :, 6, 6], expected, atol=1e-4)


@pytest.mark.parametrize("classifier", [{}, {"weight": torch.full((128, 784), torch.nan)}])
def test_ssd_vgg_without_a_classifier_keeps_its_own_fc(classifier):
    """Torchvision's ``IMAGENET1K_FEATURES`` has NaN there."""
    backbone = SSDVGG(width=2)
    weights = VGG(16, width=2).state_dict()
    weights |= {f"classifier.{i}.{k}": v for i in (0, 3) for k, v in classifier.items()}
    before = backbone.fc6.weight.clone(), backbone.fc7.weight.clone()
    backbone.load_classifier(weights)
    assert torch.equal(backbone.features[0].weight, weights["features.0.weight"])
    assert torch.equal(backbone.fc6.weight, before[0])
    assert torch.equal(backbone.fc7.weight, before[1])


def test_weights_of_another_vgg_are_refused():
    with pytest.raises(ValueError, match="not of a VGG-16: no key features"):
        SSDVGG(width=2).load_classifier(VGG(13, width=2).state_dict())
    weights = VGG(16, width=2).state_dict()
    weights["classifier.0.weight"] = torch.zeros(128, 16 * 49)
    weights["classifier.0.bias"] = torch.zeros(128)
    weights["classifier.3.weight"] = torch.zeros(100, 100)
    weights["classifier.3.bias"] = torch.zeros(100)
    with pytest.raises(ValueError, match="not of SSD's VGG-16, by their classifier: fc7"):
        SSDVGG(width=2).load_classifier(weights)


@pytest.mark.parametrize("reduced_tail", [False, True])
@torch.inference_mode()
def test_mobilenet_is_torchvisions(reduced_tail):
    theirs = mobilenet_v3_large(weights=None, reduced_tail=reduced_tail).eval()
    ours = MobileNetV3Large(reduced_tail=reduced_tail).eval()
    ours.load_classifier(theirs.state_dict())
    seen = []
    theirs.features[13].block[0].register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(2, 3, 70, 65)
    last = theirs.features(x)
    expansion, end = ours(x)
    assert torch.equal(expansion, seen[0])
    assert torch.equal(end, last)
    assert ours.channels == [expansion.shape[1], end.shape[1]]


def test_weights_of_another_tail_are_refused():
    full = mobilenet_v3_large(weights=None).state_dict()
    with pytest.raises(
        ValueError, match="not of a MobileNetV3-Large with a reduced tail: features"
    ):
        MobileNetV3Large().load_classifier(full)


def test_mobilenet_freezes_its_first_stages():
    model = MobileNetV3Large(freeze_at=2).train()
    frozen = {int(n.split(".")[1]) for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG(12), r"depth must be one of \[11, 13, 16, 19\], got 12"),
        (lambda: VGG(16, freeze_at=6), r"freeze_at must be in 0..5, got 6"),
        (lambda: MobileNetV3Large(freeze_at=7), r"freeze_at must be in 0..6, got 7"),
    ],
)
def test_bad_backbones_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batch_norm_on_a_single_value():
    """It is normalised by the running figures, which stay; two values are torch's business."""
    norm = BatchNorm2d(2, eps=1.0)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([3.0, 8.0]))
    x = torch.tensor([5.0, 8.0]).view(1, 2, 1, 1)
    y = norm(x)
    assert y.flatten().tolist() == [2.0, 2.0]
    y.sum().backward()
    assert norm.weight.grad.tolist() == [2.0, 2.0]
    assert norm.running_mean.tolist() == [1.0, 2.0]
    pair = torch.randn(2, 2, 1, 1)
    assert torch.equal(norm(pair), nn.BatchNorm2d(2, eps=1.0)(pair))
