"""The Lovasz extension against the definition, hand-worked cases and smp."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instseg.losses.segmentation import lovasz, lovasz_hinge, lovasz_softmax
from instseg.losses.segmentation.lovasz import jaccard_steps
from tests.losses.segmentation_cases import Batch, Element, average, class_weight, regions, some

JOINED = pytest.mark.parametrize("joined", [False, True])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


def jaccard_loss(pixels: list[Element], wrong: set[int]) -> float:
    """1 - intersection over union where the pixels of ``wrong`` are mispredicted (equation 6)."""
    both = sum(e.weight for i, e in enumerate(pixels) if e.y and i not in wrong)
    union = sum(e.weight for i, e in enumerate(pixels) if e.y or i in wrong)
    return 1 - both / union if union else 0.0


def extension(pixels: list[Element], errors: list[float]) -> float:
    """Definition 2: errors in falling order, each times what its pixel adds to the loss."""
    order = sorted(range(len(pixels)), key=lambda i: -errors[i])
    total, wrong = 0.0, set()
    for i in order:
        before = jaccard_loss(pixels, wrong)
        wrong.add(i)
        total += errors[i] * (jaccard_loss(pixels, wrong) - before)
    return total


@WEIGHTED
@JOINED
@pytest.mark.parametrize("skip_absent", [False, True])
def test_hinge_as_defined(weighted, joined, skip_absent):
    batch = some("multilabel", weighted=weighted)
    batch.target[0, 1] = 0
    found = regions(batch, "multilabel", joined=joined, skip_absent=skip_absent)
    expected = average(
        [
            (
                extension(pixels, [max(0, 1 - (2 * e.y - 1) * e.logit) for e in pixels]),
                class_weight(batch, c),
            )
            for c, pixels in found
        ]
    )
    value = batch.loss(lovasz_hinge, "multilabel", batch=joined, skip_absent=skip_absent)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@WEIGHTED
@JOINED
@pytest.mark.parametrize("skip_absent", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_softmax_as_defined(weighted, joined, skip_absent, background):
    batch = some("multiclass", weighted=weighted)
    batch.target[0][batch.target[0] == 1] = 2
    found = regions(
        batch, "multiclass", joined=joined, skip_absent=skip_absent, background=background
    )
    expected = average(
        [
            (extension(pixels, [abs(e.y - e.p) for e in pixels]), class_weight(batch, c))
            for c, pixels in found
        ]
    )
    value = batch.loss(
        lovasz_softmax,
        "multiclass",
        batch=joined,
        skip_absent=skip_absent,
        include_background=background,
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_hand_worked_hinge():
    """Errors 3 (not object), 1.5 (object), 0.5 (object), 0: steps 1/3, 1/3, 1/3 of a union of 3."""
    logits = torch.tensor([2.0, -0.5, 0.5, -4.0]).view(1, 1, 2, 2)
    target = torch.tensor([[[[0, 1], [1, 0]]]])
    loss = lovasz_hinge(logits, target, mode="multilabel")
    assert loss.item() == pytest.approx((3 + 1.5 + 0.5) / 3)
    # Without any object the first pixel makes a perfect prediction the worst.
    empty = lovasz_hinge(logits, torch.zeros_like(target), mode="multilabel")
    assert empty.item() == pytest.approx(3)


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_at_hard_predictions_it_is_the_jaccard_loss(mode):
    """Probabilities of 0 and 1; of the hinge twice as much at logits of +-1."""
    batch = some(mode, weighted=False)
    size = 1e4 if mode == "multiclass" else 1.0
    if mode == "multiclass":
        hard = torch.zeros_like(batch.logits).scatter(1, batch.logits.argmax(1)[:, None], size)
    else:
        hard = size * batch.logits.sign()
    batch = batch._replace(logits=hard)
    losses = [
        (jaccard_loss(pixels, {i for i, e in enumerate(pixels) if (e.logit > 0) != e.y}), 1.0)
        for _, pixels in regions(batch, mode, joined=False)
    ]
    scale = 1 if mode == "multiclass" else 2
    assert batch.loss(lovasz, mode).item() == pytest.approx(scale * average(losses))


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_limits(mode):
    target = torch.tensor([[[0, 1], [1, 0]]])
    right = 50 * (2.0 * target - 1)
    logits = torch.stack([-right, right], 1) if mode == "multiclass" else right[:, None]
    target = target if mode == "multiclass" else target[:, None]
    assert lovasz(logits, target, mode=mode).item() == pytest.approx(0, abs=1e-20)
    assert lovasz(-logits, target, mode=mode) == (1 if mode == "multiclass" else 51)


def test_every_mode_has_its_form():
    for mode, form in (("multiclass", lovasz_softmax), ("multilabel", lovasz_hinge)):
        batch = some(mode)
        assert torch.equal(batch.loss(lovasz, mode, batch=True), batch.loss(form, mode, batch=True))


@given(labels=st.lists(st.integers(0, 1), min_size=1, max_size=30), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_steps_are_differences_of_jaccard_losses(labels, seed):
    weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    weights[weights < 0.3] = 0
    pixels = [Element(0, 0, y, w) for y, w in zip(labels, weights.tolist(), strict=True)]
    steps = jaccard_steps(torch.tensor(labels).float(), weights)
    losses = [jaccard_loss(pixels, set(range(i))) for i in range(len(labels) + 1)]
    expected = [b - a for a, b in pairwise(losses)]
    assert steps.tolist() == pytest.approx(expected, abs=1e-6)
    assert (steps >= 0).all()


def test_steps_of_many_pixels_are_precise():
    """One in a thousand of a million pixels is of the object; float64 is the truth."""
    labels = (torch.rand(10**6) < 1e-3).float()
    ones = torch.ones(10**6)
    steps = jaccard_steps(labels, ones)
    truth = jaccard_steps(labels.double(), ones.double())
    torch.testing.assert_close(steps.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(steps.double().sum(), torch.tensor(1.0).double())


class TestSmp:
    """Against segmentation_models_pytorch (the authors' code)."""

    @JOINED
    @pytest.mark.parametrize("ignored", [0.0, 0.2])
    def test_softmax(self, joined, ignored):
        smp = pytest.importorskip("segmentation_models_pytorch")
        batch = some("multiclass", weighted=False, ignored=ignored)
        theirs = smp.losses.LovaszLoss("multiclass", per_image=not joined, ignore_index=255)
        self.check(batch, "multiclass", theirs(batch.logits, batch.target), joined)

    @JOINED
    @pytest.mark.parametrize("ignored", [0.0, 0.2])
    def test_hinge(self, joined, ignored):
        smp = pytest.importorskip("segmentation_models_pytorch")
        batch = some("multilabel", weighted=False, ignored=ignored, classes=1)
        theirs = smp.losses.LovaszLoss("binary", per_image=not joined, ignore_index=255)
        self.check(batch, "multilabel", theirs(batch.logits, batch.target), joined)

    @staticmethod
    def check(batch: Batch, mode: str, theirs: Tensor, joined: bool) -> None:
        torch.testing.assert_close(batch.loss(lovasz, mode, batch=joined), theirs)
