"""The input pipelines of others, written from their documentation, for `benchmarks.data`.

Both read the same files and annotations as instseg, and draw the same choice of sizes and flips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.transforms import v2


@dataclass(frozen=True)
class Item:
    """One image and its annotations, as a COCO file has them."""

    path: Path
    height: int
    width: int
    annotations: list[dict[str, Any]]


def items_of(coco: dict[str, Any], folder: Path) -> list[Item]:
    """The images of a COCO dictionary with their annotations."""
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    return [
        Item(folder / i["file_name"], i["height"], i["width"], objects[i["id"]])
        for i in coco["images"]
    ]


class TorchvisionReference:
    """references/detection of torchvision: CocoDetection, ConvertCocoPolysToMask, transforms.v2.

    The image is a tensor from the start (backend "tensor"), which is faster than their default of
    resizing with Pillow. Masks are bitmaps ``uint8 [N, H, W]`` and go through every transform.

    Args:
        items: the images.
        sizes: short edges to draw from.
        max_size: cap on the long edge.
        to_float: end with ``ToDtype(float32, scale=True)``, as their presets do.
    """

    def __init__(
        self, items: list[Item], sizes: list[int], max_size: int, *, to_float: bool = True
    ) -> None:
        self.items = items
        self.transforms = v2.Compose(
            [
                v2.RandomShortestSize(min_size=sizes, max_size=max_size),
                v2.RandomHorizontalFlip(p=0.5),
                *([v2.ToDtype(torch.float32, scale=True)] if to_float else []),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )
        self.to_tensor = v2.PILToTensor()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        item = self.items[index]
        image = tv_tensors.Image(self.to_tensor(Image.open(item.path).convert("RGB")))
        size = item.height, item.width
        objects = [a for a in item.annotations if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=item.width)
        boxes[:, 1::2].clamp_(min=0, max=item.height)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
            "masks": tv_tensors.Mask(_bitmaps([a["segmentation"] for a in objects], size)),
        }
        return self.transforms(image, target)


def _bitmaps(polygons: list[list[list[float]]], size: tuple[int, int]) -> torch.Tensor:
    masks = []
    for parts in polygons:
        codes = coco_mask.frPyObjects(parts, *size)
        mask = torch.as_tensor(coco_mask.decode(codes), dtype=torch.uint8)
        masks.append(mask.any(dim=2).to(torch.uint8))
    return torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)


class Detectron2Style:
    """A mapper as detectron2's DatasetMapper: Pillow's resize, polygons moved and kept.

    Args:
        items: the images.
        sizes: short edges to draw from.
        max_size: cap on the long edge.
        seed: of the draws.
    """

    def __init__(self, items: list[Item], sizes: list[int], max_size: int, seed: int = 0) -> None:
        self.items, self.sizes, self.max_size = items, sizes, max_size
        self.rng = np.random.default_rng(seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        with Image.open(item.path) as file:
            image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))[:, :, ::-1]
        short = self.rng.choice(self.sizes)
        scale = min(
            short / min(item.height, item.width), self.max_size / max(item.height, item.width)
        )
        size = int(item.height * scale + 0.5), int(item.width * scale + 0.5)
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR
        )
        image = np.asarray(resized)
        is_flipped = self.rng.random() < 0.5
        if is_flipped:
            image = np.flip(image, axis=1)
        factor = np.array([size[1] / item.width, size[0] / item.height])
        boxes, labels, polygons = [], [], []
        for annotation in item.annotations:
            if annotation["iscrowd"]:
                continue
            x, y, width, height = annotation["bbox"]
            corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]])
            corners = self._moved(corners, factor, size[1], is_flipped)
            boxes.append(np.concatenate([corners.min(axis=0), corners.max(axis=0)]))
            labels.append(annotation["category_id"])
            parts = [np.asarray(p, dtype=np.float64) for p in annotation["segmentation"]]
            polygons.append(
                [
                    self._moved(p.reshape(-1, 2), factor, size[1], is_flipped).reshape(-1)
                    for p in parts
                ]
            )
        kept = torch.as_tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4))
        kept[:, 0::2].clamp_(min=0, max=size[1])
        kept[:, 1::2].clamp_(min=0, max=size[0])
        is_large = ((kept[:, 2:] - kept[:, :2]) > 1e-5).all(dim=1)
        return {
            "image": torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "boxes": kept[is_large],
            "labels": torch.tensor(labels, dtype=torch.int64)[is_large],
            "polygons": [p for p, keep in zip(polygons, is_large.tolist(), strict=True) if keep],
        }

    @staticmethod
    def _moved(points: np.ndarray, factor: np.ndarray, width: int, is_flipped: bool) -> np.ndarray:
        points = points * factor
        if is_flipped:
            points[:, 0] = width - points[:, 0]
        return points
