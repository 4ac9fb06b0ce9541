"""The predictor: transforms before the model, the image's own coordinates after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.data.transforms import Compose, Resize, ResizeShortestEdge
from instseg.inference.predictor import Predictor
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, RoIMasks


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_results_are_on_the_cpu() -> None:
    model = Recorder()
    (found,) = Predictor(model, Compose([]), "cuda")([picture(30, 50)])
    assert model.seen[0].is_cuda
    assert not found.boxes.is_cuda
