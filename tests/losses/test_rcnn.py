from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import roi_align

from instseg.losses import box_losses, mask_loss, rpn_losses

NONE = torch.zeros(0, dtype=torch.int64)


def softplus(x: float) -> float:
    """log(1 + exp(x)), so that -log sigmoid(x) is softplus(-x)."""
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def smooth_l1(x: float, beta: float) -> float:
    return 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


class TestRPN:
    def test_hand_worked(self):
        """Logit 0 costs log 2 either way; offset errors 1 (linear) and 1/18 (square)."""
        objectness = torch.tensor([0.0, 50.0, 0.0, -50.0])
        offsets = torch.zeros(4, 4)
        offsets[0, 0], offsets[0, 3] = 1.0, 1 / 18
        classification, regression = rpn_losses(
            objectness, offsets, torch.tensor([0]), torch.tensor([2, 3]), torch.zeros(1, 4)
        )
        assert classification.item() == pytest.approx(2 * math.log(2) / 3)
        assert regression.item() == pytest.approx(((1 - 1 / 18) + 0.5 * 9 / 18**2) / 3)

    @pytest.mark.parametrize("beta", [1 / 9, 1.0])
    def test_equal_to_the_definition(self, beta):
        objectness, offsets = torch.randn(30) * 3, torch.randn(30, 4)
        positive, negative = torch.tensor([3, 28, 7]), torch.tensor([0, 1, 20, 15, 9])
        targets = torch.randn(3, 4)
        classification, regression = rpn_losses(
            objectness, offsets, positive, negative, targets, beta=beta
        )
        logits = objectness.double().tolist()
        expected = sum(softplus(-logits[i]) for i in positive.tolist())
        expected += sum(softplus(logits[i]) for i in negative.tolist())
        assert classification.item() == pytest.approx(expected / 8, rel=1e-5)
        errors = (offsets.double()[positive] - targets.double()).flatten().tolist()
        expected = sum(smooth_l1(e, beta) for e in errors) / 8
        assert regression.item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(("positives", "negatives"), [(5, 11), (0, 16), (16, 0)])
    def test_equal_to_torchvision(self, positives, negatives):
        """Two images of 40 anchors; their sampler gives masks, ours indices."""
        order = torch.randperm(80)
        positive, negative = order[:positives], order[40 : 40 + negatives]
        objectness, offsets, targets = torch.randn(80), torch.randn(80, 4), torch.randn(80, 4)
        labels, drawn = torch.zeros(80), torch.zeros(2, 80, dtype=torch.uint8)
        labels[positive], drawn[0, positive], drawn[1, negative] = 1, 1, 1
        theirs = RegionProposalNetwork.compute_loss(
            SimpleNamespace(fg_bg_sampler=lambda _: [list(mask.split(40)) for mask in drawn]),
            objectness[:, None],
            offsets,
            list(labels.split(40)),
            list(targets.split(40)),
        )
        ours = rpn_losses(objectness, offsets, positive, negative, targets[positive])
        torch.testing.assert_close(ours, theirs)

    def test_gradients_reach_the_sample_alone(self):
        objectness = torch.randn(10, requires_grad=True)
        offsets = torch.randn(10, 4, requires_grad=True)
        positive, negative = torch.tensor([2]), torch.tensor([5, 7, 8])
        classification, regression = rpn_losses(
            objectness, offsets, positive, negative, torch.zeros(1, 4)
        )
        (classification + regression).backward()
        expected = torch.zeros(10)
        expected[positive] = (objectness[positive].detach().sigmoid() - 1) / 4
        expected[negative] = objectness[negative].detach().sigmoid() / 4
        torch.testing.assert_close(objectness.grad, expected)
        assert offsets.grad.any(dim=1).nonzero()[:, 0].tolist() == [2]

    def test_nothing_sampled_is_zero_and_differentiable(self):
        objectness = torch.randn(5, requires_grad=True)
        offsets = torch.randn(5, 4, requires_grad=True)
        losses = rpn_losses(objectness, offsets, NONE, NONE, torch.zeros(0, 4))
        assert [loss.item() for loss in losses] == [0, 0]
        sum(losses).backward()
        assert objectness.grad.tolist() == [0] * 5
        assert offsets.grad.tolist() == [[0] * 4] * 5


class TestBox:
    def test_hand_worked(self):
        """Equal logits of 3 columns cost log 3; the error of 2 counts 2 - 1/18 in class 2 only."""
        offsets = torch.full((2, 3, 4), 100.0)
        offsets[1, 2] = torch.tensor([2.0, 0, 0, 0])
        classification, regression = box_losses(
            torch.zeros(2, 3), offsets, torch.tensor([0, 2]), torch.zeros(1, 4)
        )
        assert classification.item() == pytest.approx(math.log(3))
        assert regression.item() == pytest.approx((2 - 1 / 18) / 2)

    @pytest.mark.parametrize("beta", [1 / 9, 0.5])
    def test_equal_to_the_definition(self, beta):
        logits, offsets = torch.randn(6, 4), torch.randn(6, 4, 4)
        labels, targets = torch.tensor([3, 0, 1, 0, 0, 3]), torch.randn(3, 4)
        classification, regression = box_losses(logits, offsets, labels, targets, beta=beta)
        expected = 0.0
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
            expected += math.log(sum(math.exp(v) for v in row)) - row[label]
        assert classification.item() == pytest.approx(expected / 6, rel=1e-5)
        expected = 0.0
        for k, i in enumerate((0, 2, 5)):
            error = offsets[i, labels[i]].double() - targets[k].double()
            expected += sum(smooth_l1(e, beta) for e in error.tolist())
        assert regression.item() == pytest.approx(expected / 6, rel=1e-5)

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_equal_to_torchvision(self, share):
        """Positives need not come first."""
        logits, offsets, targets = torch.randn(20, 5), torch.randn(20, 5, 4), torch.randn(20, 4)
        labels = torch.randint(1, 5, (20,)) * (torch.rand(20) < share)
        theirs = fastrcnn_loss(
            logits, offsets.flatten(1), list(labels.split(10)), list(targets.split(10))
        )
        ours = box_losses(logits, offsets, labels, targets[labels > 0])
        torch.testing.assert_close(ours, theirs)

    def test_gradients_reach_the_true_class_alone(self):
        offsets = torch.randn(4, 3, 4, requires_grad=True)
        labels = torch.tensor([1, 2, 0, 0])
        _, regression = box_losses(torch.zeros(4, 3), offsets, labels, torch.zeros(2, 4))
        regression.backward()
        assert offsets.grad.any(dim=2).nonzero().tolist() == [[0, 1], [1, 2]]

    @pytest.mark.parametrize("rois", [0, 3])
    def test_no_positives(self, rois):
        logits = torch.randn(rois, 4, requires_grad=True)
        offsets = torch.randn(rois, 4, 4, requires_grad=True)
        labels = torch.zeros(rois, dtype=torch.int64)
        losses = box_losses(logits, offsets, labels, torch.zeros(0, 4))
        assert (losses[0] > 0) == (rois > 0)
        assert losses[1] == 0
        sum(losses).backward()
        assert logits.grad.isfinite().all()
        assert not offsets.grad.any()


class TestMask:
    def test_hand_worked(self):
        """Logit 0 costs log 2 whatever the target; a sure pixel costs its logit when wrong."""
        logits = torch.tensor([[[0.0, 0.0], [40.0, -40.0]]])
        targets = torch.tensor([[[0.0, 0.5], [1.0, 1.0]]])
        loss = mask_loss(logits, targets)
        assert loss.item() == pytest.approx((2 * math.log(2) + 40) / 4)

    def test_soft_targets_mix_both_costs(self):
        loss = mask_loss(torch.tensor([[[2.0]]]), torch.tensor([[[0.3]]]))
        assert loss.item() == pytest.approx(0.3 * softplus(-2) + 0.7 * softplus(2))

    def test_equal_to_torchvision(self):
        logits = torch.randn(5, 4, 14, 14)
        masks = (torch.rand(3, 40, 40) > 0.5).to(torch.uint8)
        gt_labels, matched = torch.tensor([2, 1, 3]), torch.tensor([0, 0, 2, 1, 2])
        corner = torch.rand(5, 2) * 20
        boxes = torch.cat([corner, corner + 5 + torch.rand(5, 2) * 15], dim=1)
        theirs = maskrcnn_loss(logits, [boxes], [masks], [gt_labels], [matched])
        rois = torch.cat([matched[:, None], boxes], dim=1)
        targets = roi_align(masks[:, None].float(), rois, (14, 14))[:, 0]
        ours = mask_loss(logits[torch.arange(5), gt_labels[matched]], targets)
        torch.testing.assert_close(ours, theirs)

    def test_no_rois(self):
        logits = torch.zeros(0, 28, 28, requires_grad=True)
        loss = mask_loss(logits, torch.zeros(0, 28, 28))
        assert loss == 0
        loss.backward()
        assert logits.grad.shape == (0, 28, 28)


def all_losses(dtype: torch.dtype, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """Every loss on logits and offsets of that size and type, with the leaves."""
    shapes = [(8,), (8, 4), (6, 3), (6, 3, 4), (2, 5, 5)]
    leaves = [(torch.randn(s) * scale).to(dtype).requires_grad_() for s in shapes]
    objectness, offsets, logits, class_offsets, masks = leaves
    positive, negative = torch.tensor([0, 1]), torch.tensor([2, 3, 4])
    labels = torch.tensor([1, 2, 0, 0, 0, 0])
    losses = [
        *rpn_losses(objectness, offsets, positive, negative, torch.randn(2, 4)),
        *box_losses(logits, class_offsets, labels, torch.randn(2, 4)),
        mask_loss(masks, torch.rand(2, 5, 5)),
    ]
    return losses, leaves


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_scalars_in_float32_with_finite_gradients(dtype, scale):
    losses, leaves = all_losses(dtype, scale)
    for loss in losses:
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert loss > 0
    sum(losses).backward()
    for leaf in leaves:
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


def test_half_precision_logits_are_summed_in_float32():
    """4096 pixels of log 2: a float16 sum would stop growing by whole numbers at 2048."""
    loss = mask_loss(torch.zeros(1, 64, 64, dtype=torch.float16), torch.ones(1, 64, 64))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
