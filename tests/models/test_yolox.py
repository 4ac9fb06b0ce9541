"""YOLOX: published sizes, decoding, losses and detections of small networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from instseg.losses.yolox import yolox_losses
from instseg.models.backbones.csp_darknet import CSPDarknet
from instseg.models.detection import yolox as module
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.prototype_masks import PrototypeMasks
from instseg.models.detection.yolox import (
    VARIANTS,
    YOLOXHead,
    decode_boxes,
    encode_boxes,
    make_cells,
    yolox,
    yolox_nano,
    yolox_nano_seg,
    yolox_preprocess,
)
from instseg.models.heads.yolox import YOLOXConvHead, YOLOXOutput
from instseg.models.necks.pafpn import PAFPN
from instseg.models.simota import Cells
from instseg.ops import box_iou
from instseg.structures import ImageBatch, Instances, RoIMasks, SparseMasks

NUM_CLASSES = 3


def small(*, masks: bool = False, use_l1: bool = False) -> OneStageDetector:
    backbone = CSPDarknet(0.33, 0.125, depthwise=True)
    neck = PAFPN(backbone.channels, backbone.strides, depth=0.33, depthwise=True)
    prototypes = PrototypeMasks(32, num_prototypes=4, channels=8) if masks else None
    convs = YOLOXConvHead(
        neck.channels,
        NUM_CLASSES,
        channels=16,
        depthwise=True,
        num_coefficients=4 if masks else 0,
    )
    head = YOLOXHead(convs, neck.strides, masks=prototypes, use_l1=use_l1)
    return OneStageDetector(yolox_preprocess(64), backbone, neck, head)


def image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def objects(size: tuple[int, int], boxes: Tensor, *, crowd: bool = False) -> Instances:
    outlines = [np.array([[x, y], [X, y], [X, Y], [x, Y]]) for x, y, X, Y in boxes.double().numpy()]
    return Instances(
        size,
        boxes,
        torch.arange(len(boxes)) % NUM_CLASSES,
        masks=SparseMasks([[o] for o in outlines], size, size),
        is_crowd=torch.full((len(boxes),), crowd),
    )


TWO = torch.tensor([[4.0, 4, 40, 44], [30.0, 20, 60, 60]])


class TestPublishedNetworks:
    @pytest.mark.parametrize(
        ("name", "millions"),
        [
            ("yolox_nano", 0.91),
            ("yolox_tiny", 5.06),
            ("yolox_s", 9.0),
            ("yolox_m", 25.3),
            ("yolox_l", 54.2),
            ("yolox_x", 99.1),
        ],
    )
    def test_parameters_of_tables_3_and_4(self, name, millions):
        with torch.device("meta"):
            model = getattr(module, name)(80)
            with_masks = getattr(module, f"{name}_seg")(80)
        count = sum(p.numel() for p in model.parameters())
        digits = 2 if millions < 9 else 1
        assert round(count / 1e6, digits) == millions
        own = dict(model.named_parameters())
        more = [k for k, _ in with_masks.named_parameters() if k not in own]
        assert all("masks" in k or "mask_branch" in k or "coefficients" in k for k in more)
        assert len(own) + len(more) == len(dict(with_masks.named_parameters()))
        assert model.preprocess.min_size == (VARIANTS[name].input_size,) * 2

    def test_prior_probability(self):
        """The focal loss's start: every sigmoid of a zero feature is 0.01."""
        for level in YOLOXConvHead([8], 5, channels=8).levels:
            for layer in (level.classes, level.objectness):
                assert torch.allclose(layer.bias.sigmoid(), torch.tensor(0.01))

    def test_input_is_0_to_255_on_grey(self):
        batch = yolox_preprocess(64)([image(40, 50)])
        assert batch.tensor.shape == (1, 3, 64, 64)
        assert torch.allclose(batch.tensor[0, :, :40, :50], image(40, 50).float(), atol=1e-4)
        assert torch.allclose(batch.tensor[0, :, 40:], torch.tensor(114.0))
        assert torch.allclose(batch.tensor[0, :, :, 50:], torch.tensor(114.0))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: yolox("yolox_xl", 3), r"yolox_nano, .*yolox_x, got 'yolox_xl'"),
            (lambda: yolox_nano(3, input_size=400), "multiple of the largest stride, 32, got 400"),
            (lambda: yolox_nano(3, input_size=0), "multiple of the largest stride, 32, got 0"),
            (lambda: yolox_nano_seg(0), "num_classes must be at least 1, got 0"),
            (lambda: YOLOXConvHead([8], 2, prior=1.0), r"prior must be .* \(0, 1\), got 1.0"),
            (
                lambda: YOLOXHead(
                    YOLOXConvHead([8], 2, channels=8, num_coefficients=3),
                    [8],
                    masks=PrototypeMasks(8, num_prototypes=4, channels=8),
                ),
                "must be the number of prototypes, 4, got 3",
            ),
            (
                lambda: YOLOXHead(YOLOXConvHead([8], 2, channels=8, num_coefficients=3), [8]),
                "must be the number of prototypes, 0, got 3",
            ),
        ],
    )
    def test_bad_arguments_are_named(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


class TestBoxes:
    def test_decoding_in_a_plain_loop(self):
        """Cell (row i, column j) of stride s: centre (s (j + t_x), s (i + t_y)), size s exp(t)."""
        features = [torch.zeros(1, 1, 3, 5), torch.zeros(1, 1, 2, 3)]
        offsets = torch.randn(2, 21, 4)
        wanted = np.zeros((2, 21, 4))
        for b in range(2):
            a = 0
            for feature, stride in zip(features, (8, 16), strict=True):
                for i in range(feature.shape[2]):
                    for j in range(feature.shape[3]):
                        tx, ty, tw, th = offsets[b, a].tolist()
                        x, y = stride * (j + tx), stride * (i + ty)
                        w, h = stride * math.exp(tw), stride * math.exp(th)
                        wanted[b, a] = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                        a += 1
        got = decode_boxes(offsets, make_cells(features, (8, 16)))
        assert got.dtype == torch.float32
        assert np.allclose(got.numpy(), wanted, atol=1e-4)

    def test_worked_by_hand(self):
        """Column 2, row 1 of stride 8, offsets (0.5, 0.25, 0, log 2): centre (20, 10), 8 x 16."""
        cells = make_cells([torch.zeros(1, 1, 2, 4)], [8])
        offsets = torch.zeros(8, 4)
        offsets[6] = torch.tensor([0.5, 0.25, 0, math.log(2)])
        assert torch.allclose(decode_boxes(offsets, cells)[6], torch.tensor([16.0, 2, 24, 18]))
        assert cells.centers[6].tolist() == [20, 12]
        assert cells.boxes[6].tolist() == [16, 8, 24, 16]

    def test_encoding_is_the_inverse(self):
        cells = make_cells([torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)], [8, 16])
        offsets = torch.randn(20, 4)
        again = encode_boxes(decode_boxes(offsets, cells), cells)
        assert torch.allclose(again, offsets, atol=1e-5)

    def test_extreme_sizes_stay_finite(self):
        cells = Cells(torch.tensor([[4.0, 4]]), torch.tensor([8.0]))
        boxes = decode_boxes(torch.tensor([[0.0, 0, 1e4, -1e4]]), cells)
        assert boxes.isfinite().all()
        assert encode_boxes(torch.tensor([[3.0, 3, 3, 9]]), cells).isfinite().all()


def fixed_head(output: YOLOXOutput, **options) -> YOLOXHead:
    """A head that says ``output`` of a 2x2 map of stride 16."""

    class Fixed(YOLOXConvHead):
        def forward(self, features):
            return output

    return YOLOXHead(Fixed([8], output.classes.shape[2], channels=8), [16], **options)


def saying(boxes: Tensor, objectness: Tensor, classes: Tensor) -> YOLOXOutput:
    """An output whose decoded boxes and probabilities are those given, for a batch."""
    cells = make_cells([torch.zeros(1, 1, 2, 2)], [16])
    offsets = torch.stack([encode_boxes(b, cells) for b in boxes])
    return YOLOXOutput(offsets, objectness.logit(), classes.logit(), offsets[..., :0])


BATCH = ImageBatch(torch.zeros(2, 3, 32, 32), [(32, 32), (20, 24)])
MAP = [torch.zeros(2, 8, 2, 2)]


class TestDetect:
    """Four cells of two images; scores are objectness x the best class."""

    def detect(self, **options) -> list[Instances]:
        boxes = torch.tensor([[2.0, 2, 12, 12], [2, 2, 12, 13], [2, 2, 12, 12], [-9, 6, 40, 41]])
        objectness = torch.tensor([0.9, 0.8, 0.5, 0.4])
        classes = torch.tensor([[0.8, 0.1], [0.6, 0.2], [0.1, 0.6], [0.5, 0.1]])
        output = saying(boxes.expand(2, 4, 4), objectness.expand(2, 4), classes.expand(2, 4, 2))
        return fixed_head(output, **options).detect(BATCH, MAP)

    def test_scores_classes_and_suppression(self):
        """Cell 1 (0.48, class 0) has IoU 10/11 with cell 0 (0.72): it goes. Cell 2 is of class 1.

        Cell 3, 0.2, is cut to each image: 32 x 32 and 24 wide, 20 high.
        """
        first, second = self.detect()
        for found, corner in ((first, [0, 6, 32, 32]), (second, [0, 6, 24, 20])):
            assert found.labels.tolist() == [0, 1, 0]
            assert found.scores.tolist() == pytest.approx([0.72, 0.3, 0.2])
            assert torch.allclose(found.boxes[0], torch.tensor([2.0, 2, 12, 12]), atol=1e-4)
            assert torch.allclose(found.boxes[2], torch.tensor(corner).float(), atol=1e-4)

    def test_every_class_of_a_cell(self):
        """Cell 0 is 0.72 and 0.09, cell 1 0.48 and 0.16, cell 2 0.05 and 0.3, cell 3 0.2 and 0.04.

        Cells 0 to 2 overlap: of each class the best stays.
        """
        (found, _) = self.detect(multi_label=True)
        assert found.scores.tolist() == pytest.approx([0.72, 0.3, 0.2, 0.04])
        assert found.labels.tolist() == [0, 1, 0, 1]
        assert torch.allclose(found.boxes[3], found.boxes[2])

    def test_thresholds(self):
        assert [len(f) for f in self.detect(score_threshold=0.25)] == [2, 2]
        assert [len(f) for f in self.detect(max_detections=1)] == [1, 1]
        assert [len(f) for f in self.detect(nms_threshold=0.95)] == [4, 4]
        assert [len(f) for f in self.detect(score_threshold=1.0)] == [0, 0]


class TestLoss:
    def test_composition(self):
        """Each image's positives meet their own objects, and crowds are left out of both."""
        gt = [
            objects((32, 32), torch.tensor([[1.0, 1, 15, 14]])),
            Instances(
                (20, 24),
                torch.tensor([[16.0, 0, 32, 16], [2.0, 17, 14, 31]]),
                torch.tensor([2, 1]),
                is_crowd=torch.tensor([True, False]),
            ),
        ]
        boxes = torch.tensor([[0.0, 0, 16, 16], [16, 0, 32, 16], [0, 16, 16, 32], [9, 9, 32, 32]])
        output = saying(boxes.expand(2, 4, 4), torch.full((2, 4), 0.5), torch.full((2, 4, 3), 0.5))
        losses = fixed_head(output, use_l1=True).loss(BATCH, MAP, gt)
        # Cell 0 of image 0 for its object; cell 2 of image 1 for its second; cell 1 is a crowd's.
        box, objectness, classes = yolox_losses(
            torch.zeros(8),
            torch.tensor([True] * 5 + [False, True, True]),
            torch.tensor([0, 6]),
            boxes[[0, 2]],
            torch.tensor([[1.0, 1, 15, 14], [2.0, 17, 14, 31]]),
            torch.zeros(2, 3),
            torch.tensor([0, 1]),
        )
        assert set(losses) == {"loss_box_reg", "loss_objectness", "loss_classifier", "loss_l1"}
        assert losses["loss_box_reg"].item() == pytest.approx(5 * box.item(), rel=1e-5)
        assert losses["loss_objectness"].item() == pytest.approx(objectness.item(), rel=1e-5)
        assert losses["loss_classifier"].item() == pytest.approx(classes.item(), rel=1e-5)
        # Of the boxes 16 x 16: centres off by (0, 0.5) and (0, 0) / 16, sizes 14 x 13, 12 x 14.
        wanted = (0.5 / 16 + sum(math.log(16 / side) for side in (14, 13, 12, 14))) / 2
        assert losses["loss_l1"].item() == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
    @pytest.mark.parametrize("given", ["two", "none", "crowd", "thousands"])
    def test_every_parameter_has_a_gradient(self, masks, given):
        many = torch.rand(2000, 2) * 50
        boxes = {
            "two": TWO,
            "none": torch.zeros(0, 4),
            "crowd": TWO,
            "thousands": torch.cat([many, many + 3 + 10 * torch.rand(2000, 2)], dim=1),
        }[given]
        model = small(masks=masks, use_l1=True).train()
        target = objects((64, 64), boxes, crowd=given == "crowd")
        losses = model([image(64, 64)] * 2, [target, Instances.empty((64, 64), with_masks=True)])
        assert all(v.shape == () and v.isfinite() for v in losses.values())
        assert all(v.dtype == torch.float32 for v in losses.values())
        positives = given in ("two", "thousands")
        for name in {"loss_box_reg", "loss_classifier", "loss_l1", "loss_mask"} & set(losses):
            assert (losses[name] > 0) == positives, name
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    def test_a_few_steps_learn_two_objects(self):
        model = small().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        wanted = TWO * 2
        pictures, targets = [image(128, 128)] * 2, [objects((128, 128), wanted)] * 2
        for _ in range(60):
            loss = sum(model(pictures, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # Still in training mode: after so few steps the running figures of batch norm lag behind.
        with torch.no_grad():
            found = model(pictures)[0][:2]
        assert sorted(found.labels.tolist()) == [0, 1]
        assert found.scores.min() > 0.3
        assert box_iou(found.boxes, wanted[found.labels]).diagonal().min() > 0.7

    def test_bfloat16(self):
        model = small(masks=True, use_l1=True).train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model([image(64, 64)], [objects((64, 64), TWO)])
            assert all(v.dtype == torch.float32 for v in losses.values())
            with torch.inference_mode():
                model.head.score_threshold = 1e-6
                (found,) = model.eval()([image(64, 64)])
        assert len(found) > 0
        assert found.boxes.dtype == found.scores.dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 5), (31, 20), (97, 65)])
@torch.inference_mode()
def test_masks_of_any_image(size):
    model = small(masks=True).eval()
    model.head.score_threshold = 1e-6
    found, other = model([image(*size), image(64, 64)])
    assert found.image_size == size
    assert len(other) > 0
    for detections in (found, other):
        assert isinstance(detections.masks, RoIMasks)
        assert detections.masks.probs.shape == (len(detections), 56, 56)
        assert detections.boxes[:, 2].max() <= detections.image_size[1]
        assert detections.boxes[:, 3].max() <= detections.image_size[0]


@torch.inference_mode()
def test_masks_come_from_the_coefficients_of_their_own_cell():
    """With a prototype of ones, the mask of a detection is sigmoid(tanh(its coefficient))."""

    class Ones(PrototypeMasks):
        def forward(self, feature):
            size = (len(feature), 1, 2 * feature.shape[2], 2 * feature.shape[3])
            return torch.ones(size)

    boxes = torch.tensor([[2.0, 2, 12, 12], [16, 2, 30, 12], [2, 17, 12, 30], [17, 17, 30, 31]])
    scores = torch.tensor([[0.5, 0.6, 0.7, 0.8], [0.8, 0.7, 0.6, 0.5]])
    output = saying(boxes.expand(2, 4, 4), scores, torch.ones(2, 4, 1) * 0.9)
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [-0.1, -0.2, -0.3, -0.4]])
    head = fixed_head(output._replace(coefficients=values[..., None]))
    head.masks = Ones(8, num_prototypes=1, channels=8)
    first, second = head.detect(ImageBatch(torch.zeros(2, 3, 32, 32), [(32, 32)] * 2), MAP)
    for found, wanted in ((first, values[0].flip(0)), (second, values[1])):
        middle = found.masks.probs[:, 28, 28]
        assert torch.allclose(middle, wanted.tanh().sigmoid(), atol=1e-5)
