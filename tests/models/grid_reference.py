"""Plain-loop figures and a scene that the tests of the grid detectors share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from instseg.structures import ImageBatch, Instances

SIZE = (96, 128)
NUM_CLASSES = 3

Box = list[float]


class Fixed(nn.Module):
    """In the place of a predictor: says what it was given, whatever the features."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, feature: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs


def scene() -> list[Instances]:
    """Objects that share cells, lie on edges, outside, in a crowd, or have no area; nothing."""
    crowded = Instances(
        SIZE,
        torch.tensor(
            [
                [10.0, 10, 50, 40],
                [12, 12, 48, 38],
                [100, 60, 128, 96],
                [127.5, 50, 200, 70],
                [300, 300, 310, 310],
                [20, 50, 20, 60],
                [60, 0, 128, 40],
                [32, 32, 64, 64],
                [70, 5, 90, 25],
            ]
        ),
        torch.tensor([0, 1, 2, 0, 1, 2, 0, 2, 1]),
        is_crowd=torch.tensor([False] * 6 + [True, False, False]),
    )
    only_crowd = Instances(
        (80, 112),
        torch.tensor([[0.0, 0, 40, 80]]),
        torch.tensor([1]),
        is_crowd=torch.tensor([True]),
    )
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([100.0, 70])
    side = 5 + torch.rand(12, 2, generator=generator) * 50
    many = Instances(
        SIZE,
        torch.cat([corner, corner + side], dim=1),
        torch.randint(0, NUM_CLASSES, (12,), generator=generator),
    )
    return [crowded, only_crowd, many, Instances.empty(SIZE)]


def batch_of(targets: list[Instances]) -> ImageBatch:
    return ImageBatch(torch.zeros(len(targets), 3, *SIZE), [t.image_size for t in targets])


def objects_of(target: Instances) -> tuple[list[tuple[Box, int]], list[Box]]:
    """(box clipped to the image, label) of the objects that can be found, and the crowds."""
    height, width = target.image_size
    objects, crowds = [], []
    for box, label, crowd in zip(
        target.boxes.tolist(), target.labels.tolist(), target.crowd.tolist(), strict=True
    ):
        if crowd:
            crowds.append(box)
            continue
        x1, x2 = (min(max(v, 0), width) for v in box[0::2])
        y1, y2 = (min(max(v, 0), height) for v in box[1::2])
        if x2 > x1 and y2 > y1:
            objects.append(([x1, y1, x2, y2], label))
    return objects, crowds


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def iou(a: Box, b: Box) -> float:
    common = overlap(a, b)
    return common / (area(a) + area(b) - common) if common else 0.0


def mostly_in(box: Box, crowds: list[Box]) -> bool:
    return any(area(box) > 0 and overlap(box, c) / area(box) >= 0.5 for c in crowds)


def around(x: float, y: float, w: float, h: float) -> Box:
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def cell_of(box: Box, grid: tuple[int, int], step: tuple[float, float]) -> tuple[int, int]:
    """Row and column of the cell that holds the centre."""
    column = min(int((box[0] + box[2]) / 2 / step[0]), grid[1] - 1)
    row = min(int((box[1] + box[3]) / 2 / step[1]), grid[0] - 1)
    return row, column


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(v) for v in logits)) - logits[label]


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def history(model: nn.Module, steps: int = 8, rate: float = 0.01) -> list[float]:
    """The loss over a few steps on one image with two objects."""
    model.train()
    target = Instances(
        (64, 96), torch.tensor([[8.0, 8, 40, 40], [50, 20, 90, 60]]), torch.tensor([1, 0])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    values = []
    for _ in range(steps):
        torch.manual_seed(1)
        loss = sum(model([image(64, 96)], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        values.append(loss.item())
    return values
