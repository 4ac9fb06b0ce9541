"""The predictor: transforms before the model, the image's own coordinates after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.data.transforms import Compose, Resize, ResizeShortestEdge
from instseg.inference.predictor import Predictor, TiledModel
from instseg.models.preprocess import Preprocess
from instseg.models.semantic.instances import ConnectedComponents
from instseg.models.semantic.segmenter import SemanticSegmenter
from instseg.models.semantic.unet import UNet
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, RoIMasks, SemanticMap
from instseg.structures.image_target import ImageTarget


class Recorder(nn.Module):
    """Finds the left half of every image, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, images: list[Tensor]) -> list[Instances]:
        assert not self.training
        self.seen += images
        found = []
        for image in images:
            height, width = image.shape[1:]
            boxes = self.weight * torch.tensor([[0.0, 0, width / 2, height]])
            masks = RoIMasks(torch.ones(1, 28, 28))
            label, score = torch.tensor([2]), torch.tensor([0.75])
            found.append(Instances((height, width), boxes, label, score, masks))
        return found


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_reach_the_model_as_they_are() -> None:
    model, image = Recorder().train(), picture(30, 50)
    Predictor(model, Compose([]))([image])
    (seen,) = model.seen
    assert seen.dtype == torch.uint8
    assert seen.shape == (3, 30, 50)
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), image)


def test_a_view_of_an_image_will_do() -> None:
    """Flipped and cropped arrays have strides that torch does not take."""
    model, image = Recorder(), picture(30, 50)
    Predictor(model, Compose([]))([image[::-1, 4:]])
    assert np.array_equal(model.seen[0].permute(1, 2, 0).numpy(), image[::-1, 4:])


@pytest.mark.parametrize("resize", [Resize((64, 32)), ResizeShortestEdge([20], max_size=1000)])
def test_results_are_in_the_images_own_coordinates(resize: nn.Module) -> None:
    model = Recorder()
    sizes = [(30, 50), (100, 40), (64, 64)]
    found = Predictor(model, Compose([resize]))([picture(*size) for size in sizes])
    for instances, size, seen in zip(found, sizes, model.seen, strict=True):
        assert tuple(seen.shape[1:]) != size
        assert instances.image_size == size
        assert instances.boxes[0].tolist() == pytest.approx([0, 0, size[1] / 2, size[0]])
        assert (instances.labels.tolist(), instances.scores.tolist()) == ([2], [0.75])
        (code,) = instance_rles(instances)
        expected = np.zeros(size, bool)
        expected[:, : size[1] // 2] = True
        assert np.array_equal(rle.decode(code), expected)
        assert not instances.boxes.requires_grad


def test_no_images() -> None:
    class Empty(nn.Module):
        def forward(self, images: list[Tensor]) -> list[Instances]:
            return [Instances.empty((1, 1)) for _ in images]

    assert Predictor(Empty(), Compose([]))([]) == []


# --- maps and pictures --------------------------------------------------------------------------


class Halves(nn.Module):
    """Class 1 is the left half of each image, with probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: list[Tensor]) -> list[SemanticMap]:
        maps = []
        for image in images:
            one = torch.zeros(image.shape[1:])
            one[:, : image.shape[2] // 2] = 1.0
            maps.append(SemanticMap.exclusive(torch.stack([1 - one, one])))
        return maps


class Inverse(nn.Module):
    def forward(self, images: list[Tensor]) -> list[ImageTarget]:
        assert all(image.dtype == torch.uint16 for image in images)
        return [ImageTarget(1 - image.float() / 65535) for image in images]


def test_maps_are_in_the_images_own_size() -> None:
    (found,) = Predictor(Halves(), Compose([Resize((64, 32))]))([picture(30, 50)])
    assert isinstance(found, SemanticMap)
    expected = np.zeros((30, 50), np.uint8)
    expected[:, :25] = 1
    assert np.array_equal(found.labels.numpy(), expected)
    assert found.scores.shape == (2, 30, 50)


def test_sixteen_bits_and_other_channels_reach_the_model() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (12, 16, 5), dtype=np.uint16)
    (found,) = Predictor(Inverse(), Compose([]))([image])
    assert isinstance(found, ImageTarget)
    expected = 1 - image.transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(found.image.numpy(), expected, atol=1e-6)


# --- tiles --------------------------------------------------------------------------------------


def segmenter(*, padding: str = "valid", instances: bool = False) -> SemanticSegmenter:
    torch.manual_seed(0)
    network = UNet(1, 2, width=4, depth=2, padding=padding)
    preprocess = Preprocess([0.5], [0.25], 1)
    finder = ConnectedComponents() if instances else None
    return SemanticSegmenter(preprocess, network, lambda *_: {}, instances=finder)


def gray(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 1), dtype=np.uint8)


@pytest.mark.parametrize("resize", [False, True])
def test_tiles_give_what_the_whole_image_gives(resize: bool) -> None:
    """So do maps that are resized back, since they keep their probabilities for it."""
    transforms = Compose([Resize((90, 150))] if resize else [])
    image, calls = gray(100, 130), []
    (whole,) = Predictor(segmenter(), transforms)([image])
    tiled_model = TiledModel(
        segmenter(), 64, keep_scores=resize, on_tile=lambda *progress: calls.append(progress)
    )
    (tiled,) = Predictor(tiled_model, transforms)([image])
    assert len(whole.labels.unique()) == 2
    assert tiled.image_size == (100, 130)
    if resize:
        torch.testing.assert_close(tiled.scores, whole.scores, rtol=0, atol=1e-5)
        assert (tiled.labels != whole.labels).float().mean() < 1e-3
    else:
        assert torch.equal(tiled.labels, whole.labels)
        assert tiled.scores is None
    assert calls[-1][0] == calls[-1][1] == len(calls) > 1


def test_objects_are_found_in_the_whole_map() -> None:
    """An object that lies in several tiles is one."""
    image = gray(100, 130)
    model = segmenter(instances=True)
    (whole,) = Predictor(model, Compose([]))([image])
    (tiled,) = Predictor(TiledModel(model, 64), Compose([]))([image])
    assert isinstance(tiled, Instances)
    assert len(tiled) == len(whole) > 0
    torch.testing.assert_close(tiled.scores, whole.scores, rtol=0, atol=1e-5)
    assert torch.equal(tiled.boxes, whole.boxes)
    assert [rle.area(code) for code in instance_rles(tiled)] == [
        rle.area(code) for code in instance_rles(whole)
    ]


def test_tiles_that_are_too_small_are_refused_before_any_image() -> None:
    """Of stride 4, windows of 4 pixels cannot overlap by one and be aligned."""
    with pytest.raises(ValueError, match="a tile of 4 pixels is too small"):
        TiledModel(segmenter(padding="same"), 4)
    with pytest.raises(ValueError, match="tile and batch_size must be at least 1, got tile 0"):
        TiledModel(segmenter(), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_results_are_on_the_cpu() -> None:
    model = Recorder()
    (found,) = Predictor(model, Compose([]), "cuda")([picture(30, 50)])
    assert model.seen[0].is_cuda
    assert not found.boxes.is_cuda
