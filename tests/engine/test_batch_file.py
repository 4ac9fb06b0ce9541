"""Batches to tensors and JSON and back, through the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from instseg.engine.batch_file import BatchDescription, pack_batch, unpack_batch
from instseg.engine.plain_batch import PlainBatch
from instseg.engine.tensor_file import read_tensor_file, save_file_atomic
from instseg.ops import rle
from instseg.structures import BitMasks, Instances, RoIMasks, SemanticMap, SparseMasks
from instseg.structures.geometry import AxisTransform
from instseg.structures.image_target import ImageTarget

H, W = 6, 9


def image(dtype: torch.dtype = torch.uint8, channels: int = 3) -> Tensor:
    return torch.arange(channels * H * W).reshape(channels, H, W).to(dtype)


def instances(masks: Any, **changes: Any) -> Instances:
    boxes = torch.tensor([[0.1, 1.0, 3.3, 4.0], [2.0, 2.0, 9.0, 5.7]])
    return Instances((H, W), boxes, torch.tensor([1, 0]), masks=masks, **changes)


def sparse() -> SparseMasks:
    """Two polygons of one object, and a run-length code, on an image seen mirrored and enlarged."""
    rng = np.random.default_rng(0)
    move = AxisTransform(scale_x=-1.5, shift_x=1 / 3, scale_y=1.1, shift_y=-0.7)
    code = rle.encode(rng.integers(0, 2, (4, 6), dtype=np.uint8))
    return SparseMasks([[rng.random((3, 2)), rng.random((5, 2)) * 4], code], (4, 6), (H, W), move)


TARGETS: dict[str, Any] = {
    "sparse": lambda: instances(sparse(), is_crowd=torch.tensor([False, True])),
    "bits": lambda: instances(BitMasks(torch.rand(2, H, W) > 0.5)),
    "bits of 8 bit": lambda: instances(BitMasks((torch.rand(2, H, W) > 0.5).to(torch.uint8))),
    "roi": lambda: instances(RoIMasks(torch.rand(2, 4, 4), aligned=False), scores=torch.rand(2)),
    "boxes": lambda: instances(None),
    "not finite": lambda: Instances((H, W), torch.full((1, 4), torch.nan), torch.tensor([0])),
    "nothing": lambda: Instances.empty((H, W), with_masks=True),
    "classes": lambda: SemanticMap(torch.randint(0, 3, (H, W), dtype=torch.uint8)),
    "weights": lambda: SemanticMap(
        torch.ones(2, H, W, dtype=torch.uint8), weights=torch.rand(H, W), threshold=0.3
    ),
    "picture": lambda: ImageTarget(image(torch.uint16, 1)),
}


def through_a_file(batch: PlainBatch, path: Path) -> PlainBatch:
    tensors, description = pack_batch(batch)
    save_file_atomic(path, tensors, {"about": description.model_dump_json()})
    read, metadata = read_tensor_file(path)
    return unpack_batch(read, BatchDescription.model_validate_json(metadata["about"]))


def assert_same(one: Any, other: Any) -> None:
    """Equal types and values, to the last bit and through every field."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.numpy().tobytes() == other.numpy().tobytes()
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif hasattr(one, "__dataclass_fields__"):
        for name in one.__dataclass_fields__:
            assert_same(getattr(one, name), getattr(other, name))
    else:
        assert one == other


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_comes_back(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]()
    batch = PlainBatch(
        [image(), torch.rand(H, W, 4).permute(2, 0, 1)],
        [target, TARGETS["boxes"]()],
        [7, 2**40],
        [(60, 90), (H, W)],
        ["a/ä.png", "b.tif"],
    )
    assert_same(through_a_file(batch, tmp_path / "batch.safetensors"), batch)


def test_a_part_of_a_batch() -> None:
    boxes = TARGETS["boxes"]
    batch = PlainBatch(
        [image()] * 3, [boxes(), boxes(), boxes()], [1, 2, 3], [(H, W)] * 3, ["a", "b", "c"]
    )
    part = PlainBatch.part_of(batch, 1)
    assert (len(part), part.image_ids, part.paths) == (2, [2, 3], ["b", "c"])
    assert part.targets[0] is batch.targets[1]
    assert PlainBatch.part_of(batch, 0, 1).image_ids == [1]


def test_a_target_that_cannot_be_stored() -> None:
    class Other:
        image_size = (H, W)

    batch = PlainBatch([image()], [Other()], [1], [(H, W)], ["a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="targets of the type Other cannot be stored"):
        pack_batch(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop("0.image"), "'0.image' is missing"),
        (lambda t, d: t.update(other=t["0.image"]), "unknown tensors"),
        (lambda t, d: t.update({"0.target.labels": torch.zeros(3)}), "labels must be int64"),
        (lambda t, d: t.update({"0.image": torch.zeros(3, 2, 2)}), "0.image.* 6 x 9"),
        (lambda t, d: d["paths"].append("more"), "other numbers of ids"),
        (
            lambda t, d: d["targets"][0]["masks"]["segmentations"][1].update(size=[2, 2]),
            "is for an image of",
        ),
        (
            lambda t, d: d["targets"][0]["masks"]["segmentations"][1].update(counts="0"),
            "does not fill its image",
        ),
        (
            lambda t, d: d["targets"][0]["masks"]["segmentations"][1].update(counts="é"),
            "ascii",
        ),
        (lambda t, d: d["targets"][0]["masks"].update(transform=[0.0] * 4), "scale 0"),
        (lambda t, d: d["targets"][0].update(image_size=[0, 9]), "greater than or equal to 1"),
        (
            lambda t, d: d["targets"][0]["masks"]["segmentations"].__setitem__(0, [[[1, 2]]]),
            "at least 3",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: Any, message: str) -> None:
    batch = PlainBatch([image()], [TARGETS["sparse"]()], [1], [(H, W)], ["a"])
    tensors, description = pack_batch(batch)
    plain = description.model_dump(mode="json")
    change(tensors, plain)
    with pytest.raises(ValueError, match=message):
        unpack_batch(tensors, BatchDescription.model_validate_json(json.dumps(plain)))
