"""Around the network: mirrored borders, and logits that lie where the image's pixels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.models.preprocess import Preprocess
from instseg.models.semantic.network import SegmentationNetwork
from instseg.models.semantic.segmenter import SemanticSegmenter, mirrored
from instseg.models.semantic.unet import UNet
from instseg.structures import IGNORE, Instances, SemanticMap


class Inside(SegmentationNetwork):
    """Says of a pixel what it is: the image without a border of ``border`` pixels.

    Sides are ``border`` twice and a multiple of ``step``.
    """

    class_layers = ()

    def __init__(self, channels: int = 2, border: int = 5, step: int = 4) -> None:
        super().__init__()
        self.in_channels = self.num_outputs = channels
        self.border, self.step = border, step
        self.seen: list[Tensor] = []
        self.scale = nn.Parameter(torch.ones(()))

    def valid_size(self, size: int) -> int:
        return -(-(size - 2 * self.border) // self.step) * self.step + 2 * self.border

    def forward(self, x: Tensor) -> Tensor:
        assert all(self.valid_size(side) == side for side in x.shape[2:])
        self.seen.append(x)
        height, width = x.shape[2] - self.border, x.shape[3] - self.border
        return self.scale * x[..., self.border : height, self.border : width]


class Recorder:
    """A loss that keeps what it was given."""

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        self.logits, self.labels, self.weights = logits, labels, weights
        return {"loss_mean": logits.mean()}


def segmenter(network: SegmentationNetwork, **settings) -> SemanticSegmenter:
    channels = network.in_channels
    plain = Preprocess([0.0] * channels, [1.0] * channels, 1)
    return SemanticSegmenter(plain, network, Recorder(), **settings)


def pictures(*sizes: tuple[int, int], channels: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(channels, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize(
    ("size", "corner", "canvas"),
    [
        ((7, 9), (0, 0), (7, 9)),
        ((7, 9), (0, 0), (8, 16)),
        ((7, 9), (3, 2), (12, 14)),
        ((7, 9), (0, 4), (7, 13)),
        ((4, 5), (11, 13), (40, 50)),  # mirrored again and again
        ((2, 3), (5, 0), (9, 9)),
        ((1, 5), (4, 4), (9, 13)),  # of a single row there are only copies
        ((1, 1), (2, 3), (4, 8)),
    ],
)
def test_mirroring_is_that_of_numpy(size, corner, canvas):
    (image,) = pictures(size)
    after = [c - k - s for c, k, s in zip(canvas, corner, size, strict=True)]
    pads = [(0, 0), (corner[0], after[0]), (corner[1], after[1])]
    expected = np.pad(image.numpy(), pads, mode="reflect")
    assert np.array_equal(mirrored(image, corner, canvas).numpy(), expected)
    assert np.array_equal(mirrored(image[None], corner, canvas)[0].numpy(), expected)


@pytest.mark.parametrize("border", [0, 5])
@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 5), (3, 2)])
def test_logits_lie_on_their_pixels(border, size):
    """A network that repeats what it sees gives the image back."""
    images = pictures(size)
    network = Inside(border=border)
    logits, sizes = segmenter(network).logits(images)
    assert sizes == [size]
    assert torch.equal(logits, images[0][None])
    (seen,) = network.seen
    pads = [(0, 0), *((border, seen.shape[i + 2] - s - border) for i, s in enumerate(size))]
    assert np.array_equal(seen[0].detach(), np.pad(images[0], pads, mode="reflect"))
    # No larger than it takes.
    assert all(side - 2 * border - s < 4 for side, s in zip(seen.shape[2:], size, strict=True))


@pytest.mark.parametrize("border", [0, 5])
def test_images_of_a_batch_lie_each_on_its_own(border):
    sizes = [(13, 22), (20, 9)]
    images = pictures(*sizes)
    logits, given = segmenter(Inside(border=border)).logits(images)
    assert given == sizes
    assert logits.shape == (2, 2, 20, 22)
    for row, image, (h, w) in zip(logits, images, sizes, strict=True):
        assert torch.equal(row[:, :h, :w], image)
        below = np.pad(image, [(0, 0), (0, 20 - h), (0, 22 - w)], mode="reflect")
        assert np.array_equal(row.detach(), below)


def test_an_unpadded_unet_sees_mirrored_borders():
    """The logits of an image are those of the inside of the same image mirrored by hand."""
    torch.manual_seed(0)
    network = UNet(2, 2, width=2, depth=2, padding="valid").eval()
    (image,) = pictures((30, 41))
    with torch.inference_mode():
        logits, _ = segmenter(network).logits([image])
        border, pads = network.border, [(0, 0)]
        for side in (30, 41):
            whole = network.valid_size(side + 2 * border)
            pads.append((border, whole - side - border))
        by_hand = network(torch.from_numpy(np.pad(image, pads, mode="reflect"))[None])
    assert torch.allclose(logits, by_hand[..., :30, :41], atol=1e-6)


def test_a_network_whose_outputs_are_smaller_than_its_border_says():
    """`output_size` decides, where it is less than the side without the border."""

    class Short(Inside):
        def output_size(self, size: int) -> int:
            return size - 2 * self.border - 3

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[..., :-3, :-3]

    images = pictures((16, 14))
    logits, _ = segmenter(Short()).logits(images)
    assert torch.equal(logits, images[0][None])


def test_what_lies_beside_an_image_counts_nowhere():
    sizes = [(6, 9), (8, 5)]
    model = segmenter(Inside())
    first = torch.tensor(range(54), dtype=torch.uint8).reshape(6, 9) % 2
    second = torch.ones(8, 5, dtype=torch.uint8)
    model(pictures(*sizes), [SemanticMap(first), SemanticMap(second)])
    loss = model.loss
    assert loss.weights is None
    assert loss.logits.shape == (2, 2, 8, 9)
    assert loss.labels.dtype == torch.uint8
    assert torch.equal(loss.labels[0, :6], first)
    assert torch.equal(loss.labels[1, :, :5], second)
    assert (loss.labels[0, 6:] == IGNORE).all()
    assert (loss.labels[1, :, 5:] == IGNORE).all()


def test_pixels_without_weights_weigh_1_and_those_beside_an_image_0():
    sizes = [(6, 9), (8, 5)]
    model = segmenter(Inside())
    weights = torch.arange(54.0).reshape(6, 9)
    labels = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    model(pictures(*sizes), [SemanticMap(labels[0], weights=weights), SemanticMap(labels[1])])
    found = model.loss.weights
    assert torch.equal(found[0, :6], weights)
    assert (found[0, 6:] == 0).all()
    assert (found[1, :, :5] == 1).all()
    assert (found[1, :, 5:] == 0).all()


def test_overlapping_labels_are_padded_alike():
    model = segmenter(Inside(), multi_label=True)
    sizes = [(6, 9), (8, 5)]
    maps = [torch.ones(2, *size, dtype=torch.uint8) for size in sizes]
    model(pictures(*sizes), [SemanticMap(m) for m in maps])
    labels = model.loss.labels
    assert labels.shape == (2, 2, 8, 9)
    assert (labels[0, :, :6] == 1).all()
    assert (labels[0, :, 6:] == IGNORE).all()
    assert (labels[1, :, :, 5:] == IGNORE).all()


@pytest.mark.parametrize("threshold", [0.5, 0.6])
def test_probabilities_and_labels_by_hand(threshold):
    """Logits 0 and ln 2: softmax gives 1/3 and 2/3, the sigmoid 1/2 and 2/3."""
    logits = torch.zeros(2, 4, 4)
    logits[1] = np.log(2)
    (exclusive,) = segmenter(Inside(), threshold=threshold)([logits])
    assert torch.allclose(exclusive.scores[:, 0, 0], torch.tensor([1 / 3, 2 / 3]))
    assert (exclusive.labels == 1).all()
    (overlapping,) = segmenter(Inside(), multi_label=True, threshold=threshold)([logits])
    assert torch.allclose(overlapping.scores[:, 0, 0], torch.tensor([1 / 2, 2 / 3]))
    assert (overlapping.labels[0] == (threshold == 0.5)).all()
    assert (overlapping.labels[1] == 1).all()


def test_the_threshold_of_two_classes():
    (strict,) = segmenter(Inside(), threshold=0.7)([torch.tensor([0, np.log(2)])[:, None, None]])
    assert strict.labels.tolist() == [[0]]
    assert strict.threshold == 0.7


def test_a_post_processor_gets_the_maps():
    given = []

    def finder(semantic: SemanticMap) -> Instances:
        given.append(semantic)
        return Instances.empty(semantic.image_size)

    sizes = [(6, 9), (8, 5)]
    found = segmenter(Inside(), instances=finder)(pictures(*sizes))
    assert [f.image_size for f in found] == sizes
    assert [g.image_size for g in given] == sizes
    assert all(g.scores is not None for g in given)


def test_class_layers_are_the_networks_in_the_models_names():
    network = UNet(1, 2, width=2, depth=1)
    model = segmenter(network)
    assert model.class_layers == ["network.head.*"]
    assert model.networks == [network]


@pytest.mark.parametrize("size", [(8, 8), (6, 11)])
@torch.inference_mode()
def test_symmetries_average_over_turned_and_mirrored_views(size: tuple[int, int]) -> None:
    """Against numpy's turns: the eight symmetries of a square are four turns of two images."""
    torch.manual_seed(2)
    network = Same()
    image = torch.randint(0, 256, (1, *size), dtype=torch.uint8)

    def predicted(picture: np.ndarray, views: int) -> np.ndarray:
        model = segmenter(network, symmetries=views)
        (found,) = model([torch.from_numpy(np.ascontiguousarray(picture))])
        scores: np.ndarray = found.scores.numpy()
        return scores

    def mean(views: list[tuple[int, bool]]) -> np.ndarray:
        maps = []
        for turns, mirror in views:
            seen = np.rot90(image.numpy(), turns, (1, 2))
            scores = predicted(seen[..., ::-1] if mirror else seen, 1)
            maps.append(np.rot90(scores[..., ::-1] if mirror else scores, -turns, (1, 2)))
        return np.mean(maps, axis=0)

    everyone = [(turns, mirror) for mirror in (False, True) for turns in range(4)]
    views = {1: everyone[:1], 2: [(0, False), (0, True)], 8: everyone}
    views[4] = [(0, False), (0, True), (2, False), (2, True)]
    for number, wanted in views.items():
        assert np.allclose(predicted(image.numpy(), number), mean(wanted), atol=1e-6), number
    assert not np.allclose(mean(everyone), mean(views[4]), atol=1e-3)


class Same(SegmentationNetwork):
    """One padded convolution, whose kernel has no symmetry."""

    in_channels, num_outputs, class_layers = 1, 2, ()

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3, padding=1)
        torch.nn.init.normal_(self.conv.weight)

    def valid_size(self, size: int) -> int:
        return size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)
