from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instseg.config.build_model import build_model
from instseg.config.schema_backbone import ResNetConfig
from instseg.config.schema_model import FpnConfig, MaskRcnnConfig
from instseg.losses import mask_loss
from instseg.models.detection.faster_rcnn import FasterRCNN
from instseg.models.detection.roi_boxes import SampledRoIs
from instseg.models.detection.roi_masks import RoIMaskHead, unet_mask_head
from instseg.models.heads import FCNMaskBody, MaskPredictor
from instseg.models.heads.unet_mask import ClassMaskPredictor, TwoScaleRoIAlign, UNetMaskBody
from instseg.ops import mask_targets, multiscale_roi_align, paste_masks
from instseg.structures import BitMasks, Instances, RoIMasks
from tests.contracts.reference import roi_align

OPTIONS = [(1, 28), (1, 56), (2, 28), (2, 56), (2, 112), (3, 56), (3, 112)]
STRIDES = [4, 8]


def pyramid(channels: int = 6, images: int = 1, side: int = 64) -> list[Tensor]:
    """Maps of an image of that side, with one level more than the heads use."""
    return [torch.randn(images, channels, side // s, side // s) for s in (*STRIDES, 16)]


def small_head(channels: int = 16, **options) -> RoIMaskHead:
    return unet_mask_head(6, STRIDES, 3, channels=channels, **options)


def samples_of(boxes: Tensor, labels: list[int]) -> SampledRoIs:
    """All of them positives, of objects in order."""
    return SampledRoIs(boxes, torch.arange(len(boxes)), torch.tensor(labels) + 1)


def target_of(masks: Tensor, boxes: Tensor, labels: list[int]) -> Instances:
    size = (masks.shape[1], masks.shape[2])
    return Instances(size, boxes, torch.tensor(labels), masks=BitMasks(masks))


BOXES = torch.tensor([[4.0, 6, 40, 52], [10.5, 3, 33, 30.25]])


def small_problem() -> tuple[list[Tensor], list[SampledRoIs], list[Instances]]:
    masks = torch.rand(2, 64, 64) > 0.5
    return pyramid(), [samples_of(BOXES, [2, 0])], [target_of(masks, BOXES, [2, 0])]


class TestTwoScaleRoIAlign:
    BOXES = (torch.tensor([[8.0, 8, 40, 50]]), torch.tensor([[9.0, 12, 50, 33], [4, 4, 60, 60]]))

    @torch.no_grad()
    def test_context_is_what_projecting_after_pooling_gives(self):
        pooler = TwoScaleRoIAlign(6, STRIDES, context=(4, 7), detail=(2, 9))
        nn.init.normal_(pooler.context[0].bias)
        features = pyramid(images=2)
        context, detail = pooler(features, list(self.BOXES))
        assert detail.shape == (3, 2, 9, 9)
        pooled = multiscale_roi_align(features[:2], list(self.BOXES), 7, STRIDES)
        torch.testing.assert_close(context, pooler.context(pooled), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("aligned", [True, False])
    @torch.no_grad()
    def test_detail_is_cut_from_a_map_twice_as_fine(self, aligned):
        sides = {"context": (4, 7), "detail": (2, 9)}
        pooler = TwoScaleRoIAlign(6, STRIDES, **sides, aligned=aligned).double()
        nn.init.normal_(pooler.detail.bias)
        features = [f.double() for f in pyramid(images=2)]
        detail = pooler(features, [b.double() for b in self.BOXES])[1]
        weight, bias = pooler.detail.weight.numpy(), pooler.detail.bias.numpy()
        finest = features[0].numpy()
        fine = np.zeros((2, 2, 32, 32))
        for y in range(32):
            for x in range(32):
                taps = weight[:, :, y % 2, x % 2]
                fine[:, :, y, x] = finest[:, :, y // 2, x // 2] @ taps + bias
        rows = [[i, *box] for i, boxes in enumerate(self.BOXES) for box in boxes.tolist()]
        wanted = roi_align(fine, np.array(rows), (9, 9), 0.5, 2, aligned)
        torch.testing.assert_close(detail, torch.from_numpy(wanted))

    def test_strides_are_checked(self):
        with pytest.raises(ValueError, match="strides must be"):
            TwoScaleRoIAlign(6, [4, 12], context=(4, 7), detail=(2, 9))


def plain_unet(body: UNetMaskBody, depth: int, context: Tensor, detail: Tensor) -> Tensor:
    """The body written out in functions."""
    weights = body.state_dict()

    def double_conv(name: str, x: Tensor) -> Tensor:
        for i in (0, 1):
            key = f"{name}.{i}.0"
            x = F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1).relu()
        return x

    down = [double_conv("contract.0", context)]
    for k in range(depth):
        down.append(double_conv(f"contract.{k + 1}", F.max_pool2d(down[-1], 2)))
    x, k = down.pop(), 0
    assert x.shape[-1] == 7
    while x.shape[-1] < detail.shape[-1]:
        key = f"upsample.{k}"
        x = F.conv_transpose2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], stride=2)
        if down:
            x = torch.cat([x, down.pop()], 1)
        if x.shape[-1] == detail.shape[-1]:
            x = torch.cat([x, detail], 1)
        x = double_conv(f"expand.{k}", x)
        k += 1
    return x


class TestBody:
    @pytest.mark.parametrize(("depth", "resolution"), OPTIONS)
    @torch.no_grad()
    def test_equal_to_the_unet_written_out(self, depth, resolution):
        body = UNetMaskBody(32, depth=depth, resolution=resolution)
        assert body.pooled_size == 7 * 2**depth
        context = torch.randn(2, body.in_channels, body.pooled_size, body.pooled_size)
        detail = torch.randn(2, body.detail_channels, resolution, resolution)
        got = body((context, detail))
        assert got.shape == (2, body.channels, resolution, resolution)
        torch.testing.assert_close(got, plain_unet(body, depth, context, detail))

    def test_widths_halve_with_each_doubling_of_the_side(self):
        body = UNetMaskBody(256, depth=2, resolution=112)
        assert [b[1][0].out_channels for b in body.contract] == [64, 128, 256]
        assert [b[1][0].out_channels for b in body.expand] == [128, 64, 32, 16]
        # Own map, contracting path, detail.
        assert [b[0][0].in_channels for b in body.expand] == [256, 128, 32, 32]
        assert (body.in_channels, body.detail_channels, body.channels) == (64, 16, 16)

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.GroupNorm, 2)])
    def test_norm_follows_each_convolution(self, norm):
        body = UNetMaskBody(16, norm=norm)
        for block in (*body.contract, *body.expand):
            for conv, normalisation, activation in block:
                assert conv.bias is None
                assert isinstance(normalisation, type(norm(2)))
                assert isinstance(activation, nn.ReLU)
        out = body((torch.randn(1, 4, 28, 28), torch.randn(1, 2, 56, 56)))
        assert out.isfinite().all()

    @torch.no_grad()
    def test_initial_weights_keep_the_scale(self):
        body = UNetMaskBody()
        predictor = ClassMaskPredictor(body.channels, 80)
        out = body((torch.randn(2, 64, 28, 28), torch.randn(2, 32, 56, 56)))
        assert 0.3 < out.std() < 3
        assert 0.3 < predictor(out, torch.tensor([3, 70])).std() < 3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"depth": 0}, "depth must be at least 1 pooling, got 0: choose 2 or 3"),
            ({"resolution": 60}, r"resolution must be 7 \* 2\^k .* 60: choose 28, 56 or 112"),
            ({"depth": 3, "resolution": 28}, "side 56 of depth 3, got 28: choose 56, 112 or 224"),
            ({"resolution": 0}, "got 0: choose 28"),
            ({"resolution": -56}, "got -56: choose 28"),
            ({"channels": 100}, "channels must be a multiple of 8, .* side 7 to 56, got 100"),
            ({"channels": 0}, "channels must be a multiple of 8"),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(ValueError, match=message):
            UNetMaskBody(**options)


class TestPredictor:
    @torch.no_grad()
    def test_class_specific_is_a_slice_of_the_full_convolution(self):
        predictor = ClassMaskPredictor(5, 4)
        nn.init.normal_(predictor.logits.bias)
        x, labels = torch.randn(5, 5, 6, 6), torch.tensor([0, 3, 1, 3, 2])
        wanted = predictor.logits(x)[torch.arange(5), labels]
        torch.testing.assert_close(predictor(x, labels), wanted)

    @torch.no_grad()
    def test_agnostic_has_one_mask_for_all_classes(self):
        predictor = ClassMaskPredictor(5, 4, class_agnostic=True)
        assert predictor.logits.weight.shape == (1, 5, 1, 1)
        x = torch.randn(2, 5, 6, 6)
        got = predictor(x, torch.tensor([0, 3]))
        assert torch.equal(got, predictor.logits(x)[:, 0])
        assert torch.equal(got, predictor(x, torch.tensor([2, 1])))

    def test_only_present_classes_are_trained(self):
        predictor = ClassMaskPredictor(4, 3)
        predictor(torch.randn(3, 4, 5, 5), torch.tensor([0, 2, 2])).square().sum().backward()
        assert predictor.logits.weight.grad.flatten(1).any(1).tolist() == [True, False, True]


def multiplications(body: nn.Module, predictor: nn.Module, *pooled: tuple[int, int]) -> float:
    """Of one RoI, with pooled maps of those channels and sides."""
    maps = tuple(torch.zeros(1, c, s, s, device="meta") for c, s in pooled)
    with FlopCounterMode(display=False) as counter:
        predictor(body(maps if len(maps) > 1 else maps[0]), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("depth", "resolution", "millions", "ratio"),
    [(2, 56, 424, 0.82), (2, 112, 488, 0.95), (3, 56, 496, 0.97), (3, 112, 561, 1.09)],
)
def test_cost_is_that_of_the_docstring(depth, resolution, millions, ratio):
    with torch.device("meta"):
        fcn, fcn_predictor = FCNMaskBody(256), MaskPredictor(256, 80)
        body = UNetMaskBody(depth=depth, resolution=resolution)
        predictor = ClassMaskPredictor(body.channels, 80)
    own = multiplications(
        body, predictor, (body.in_channels, body.pooled_size), (body.channels, resolution)
    )
    assert own / 1e6 == pytest.approx(millions, abs=0.6)
    assert own / multiplications(fcn, fcn_predictor, (256, 14)) == pytest.approx(ratio, abs=0.006)


class TestHead:
    @pytest.mark.parametrize("class_agnostic", [False, True])
    @pytest.mark.parametrize(("depth", "resolution"), OPTIONS)
    def test_shapes(self, depth, resolution, class_agnostic):
        head = small_head(depth=depth, resolution=resolution, class_agnostic=class_agnostic)
        boxes = [BOXES, BOXES[:1]]
        logits = head(pyramid(images=2), boxes, torch.tensor([0, 2, 1]))
        assert logits.shape == (3, resolution, resolution)
        assert logits.dtype == torch.float32

    @pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1), (2, 0.5)])
    def test_loss_is_that_of_its_logits_and_targets(self, weights):
        bce, dice = weights
        head = small_head(bce=bce, dice=dice)
        features, samples, targets = small_problem()
        got = head.loss(features, samples, targets)
        assert set(got) == {"loss_mask"}
        wanted = mask_targets(targets[0].masks, torch.arange(2), BOXES, 56)
        logits = head(features, [BOXES], torch.tensor([2, 0]))
        torch.testing.assert_close(got["loss_mask"], mask_loss(logits, wanted, bce=bce, dice=dice))

    @pytest.mark.parametrize("class_agnostic", [False, True])
    @pytest.mark.parametrize(("depth", "resolution"), [(2, 56), (3, 56), (2, 112)])
    def test_gradients_reach_all_parameters_and_the_finest_map(
        self, depth, resolution, class_agnostic
    ):
        head = small_head(
            64, depth=depth, resolution=resolution, class_agnostic=class_agnostic
        ).train()
        features, samples, targets = small_problem()
        # Too large for the finest level: that has gradients by the fine skip alone.
        head.pooler.context_pooler.canonical_size = 1.0
        features[0].requires_grad_()
        head.loss(features, samples, targets)["loss_mask"].backward()
        assert features[0].grad.any()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_predictions_are_masks_of_each_detection(self):
        head = small_head().eval()
        features = pyramid(images=2)
        found = [
            Instances((64, 64), BOXES, torch.tensor([2, 0]), scores=torch.tensor([0.9, 0.5])),
            Instances((64, 64), BOXES[1:], torch.tensor([1]), scores=torch.tensor([0.4])),
        ]
        with torch.inference_mode():
            first, second = head.predict(features, found)
            logits = head(features, [BOXES, BOXES[1:]], torch.tensor([2, 0, 1]))
        assert isinstance(first.masks, RoIMasks)
        assert first.masks.aligned
        assert torch.equal(torch.cat([first.masks.probs, second.masks.probs]), logits.sigmoid())
        assert torch.equal(first.scores, found[0].scores)

    def test_torchvisions_convention_reaches_the_masks(self):
        head = small_head(aligned=False).eval()
        found = Instances((64, 64), BOXES, torch.tensor([2, 0]), scores=torch.ones(2))
        (got,) = head.predict(pyramid(), [found])
        assert not got.masks.aligned

    def test_no_rois(self):
        head = small_head(norm=nn.BatchNorm2d).train()
        features = pyramid()
        nothing = Instances.empty((64, 64), with_masks=True)
        loss = head.loss(features, [samples_of(torch.zeros(0, 4), [])], [nothing])["loss_mask"]
        assert loss == 0
        loss.backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
        with torch.inference_mode():
            (found,) = head.eval().predict(features, [nothing])
        assert found.masks.probs.shape == (0, 56, 56)

    def test_bfloat16_autocast(self):
        head = small_head(64)
        features, samples, targets = small_problem()
        with torch.autocast("cpu", torch.bfloat16):
            loss = head.loss([f.bfloat16() for f in features], samples, targets)["loss_mask"]
        loss.backward()
        assert loss.dtype == torch.float32
        full = head.loss(features, samples, targets)["loss_mask"]
        assert loss.item() == pytest.approx(full.item(), rel=0.03)
        assert all(p.grad.isfinite().all() for p in head.parameters())

    def test_class_layers_are_named_as_the_detector_says(self):
        few, many = (unet_mask_head(6, STRIDES, n, channels=16).state_dict() for n in (2, 5))
        differing = {f"mask_head.{k}" for k in few if few[k].shape != many[k].shape}
        named = {
            name
            for name in (f"mask_head.{k}" for k in few)
            if any(fnmatchcase(name, pattern) for pattern in FasterRCNN.class_layers)
        }
        assert differing == named == {f"mask_head.predictor.logits.{p}" for p in ("weight", "bias")}

    @pytest.mark.parametrize(("bce", "dice"), [(0, 0), (-1, 2), (1, -0.5)])
    def test_bad_loss_weights(self, bce, dice):
        with pytest.raises(ValueError, match=f"bce and dice must be .* got {bce} and {dice}"):
            small_head(bce=bce, dice=dice)

    def test_targets_need_masks(self):
        features, samples, targets = small_problem()
        targets[0].masks = None
        with pytest.raises(ValueError, match="needs targets with SparseMasks or BitMasks"):
            small_head().loss(features, samples, targets)

    @pytest.mark.parametrize("class_agnostic", [False, True])
    @torch.no_grad()
    def test_convolutions_compile_in_one_graph(self, class_agnostic):
        torch._dynamo.reset()
        head = small_head(depth=2, resolution=112, class_agnostic=class_agnostic).eval()

        def convolutions(pooled: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
            return head.predictor(head.body(pooled), labels)

        pooled, labels = head.pooler(pyramid(), [BOXES]), torch.tensor([2, 0])
        compiled = torch.compile(convolutions, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(pooled, labels), convolutions(pooled, labels))


def ring_iou(mask: Tensor, ring: Tensor) -> float:
    return ((mask & ring).sum() / (mask | ring).sum()).item()


def test_learns_a_ring_too_thin_for_a_mask_of_side_28():
    """A ring two pixels wide in a box of 112: a mask of side 28 has cells of four pixels.

    The features tell, in each pixel of stride 4, which of its quarters the ring covers.
    """
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    radius = ((rows + 0.5 - 32) ** 2 + (columns + 0.5 - 32) ** 2).sqrt()
    quarters = (radius >= 20) & (radius < 21)
    ring = quarters.repeat_interleave(2, 0).repeat_interleave(2, 1)
    finest = F.pixel_unshuffle(quarters[None, None].float(), 2)
    features = [finest, F.avg_pool2d(finest, 2)]
    box = torch.tensor([[8.0, 8, 120, 120]])
    target = target_of(ring[None], box, [0])

    coarse = mask_targets(target.masks, torch.tensor([0]), box, 28)
    pasted = paste_masks(coarse, box, (128, 128))[0]
    assert max(ring_iou(pasted > 0.05 * k, ring) for k in range(1, 19)) < 0.6

    head = unet_mask_head(4, STRIDES, 1, channels=64)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        loss = head.loss(features, [samples_of(box, [0])], [target])["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = Instances((128, 128), box, torch.tensor([0]), scores=torch.ones(1))
    with torch.no_grad():
        (got,) = head.predict(features, [found])
    assert ring_iou(paste_masks(got.masks.probs, box, (128, 128))[0] > 0.5, ring) > 0.9


def test_in_a_mask_rcnn():
    config = MaskRcnnConfig(
        name="mask_rcnn",
        backbone=ResNetConfig(name="resnet", depth=18, norm="live", freeze_at=0),
        neck=FpnConfig(channels=16),
    )
    model = build_model(config, num_classes=3, load_backbone=False)
    model.mask_head = unet_mask_head(16, model.neck.strides[:-1], 3, channels=16, resolution=112)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 10:50] = True
    target = target_of(masks, torch.tensor([[10.0, 8, 50, 40]]), [1])
    losses = model.train()([image], [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.box_head.score_threshold = 0.1
    with torch.inference_mode():
        (found,) = model.eval()([image])
    assert len(found) > 0
    assert found.masks.probs.shape == (len(found), 112, 112)
