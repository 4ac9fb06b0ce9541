import pickle
from typing import Any

import numpy as np
import pytest
import torch

from instseg.evaluation.collector import RecordCollector
from instseg.ops import rle
from instseg.structures import BitMasks, Instances

SIZE = (40, 60)
TRUTH: dict[str, Any] = {
    "images": [{"id": i, "height": 40, "width": 60} for i in (3, 5)] + [{"id": 8}],
    "categories": [{"id": 7, "name": "a"}, {"id": 2, "name": "b"}],
    "annotations": [],
}


def instances_of(
    records: list[dict[str, Any]], size: tuple[int, int], ids: tuple[int, ...] = (1, 2)
) -> Instances:
    """Result records of one image as a model gives them."""
    boxes = torch.tensor([r["bbox"] for r in records], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [rle.decode(r["segmentation"]) for r in records]
    pixels = np.stack(masks) if masks else np.zeros((0, *size), np.uint8)
    return Instances(
        size,
        boxes=boxes,
        labels=torch.tensor([ids.index(r["category_id"]) for r in records], dtype=torch.int64),
        scores=torch.tensor([r["score"] for r in records], dtype=torch.float32),
        masks=BitMasks(torch.from_numpy(pixels).bool()),
    )


def found(score: float, count: int = 1, *, size: tuple[int, int] = SIZE) -> Instances:
    return Instances(
        size,
        boxes=torch.tensor([[1.0, 2.0, 4.0, 8.0]] * count).reshape(-1, 4),
        labels=torch.ones(count, dtype=torch.int64),
        scores=torch.full((count,), score),
    )


def collector(**options: Any) -> RecordCollector:
    return RecordCollector(TRUTH, [7, 2], ("bbox",), **options)


def record(image_id: int, score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 2, "bbox": [1, 2, 3, 6], "score": score}


def test_records_come_by_image_id_and_an_image_counts_once() -> None:
    c = collector()
    c.update([5, 3], [found(0.5), found(0.25, 2)])
    c.update([3, 5], [found(0.75), found(0.75)])
    assert c.results() == [record(3, 0.25), record(3, 0.25), record(5, 0.5)]
    c.reset()
    assert c.results() == []
    c.update([3], [found(0.75)])
    assert c.results() == [record(3, 0.75)]


def test_an_image_without_detections_was_seen_too() -> None:
    c = collector()
    c.update([3], [found(0.5, 0)])
    c.update([3], [found(0.5)])
    assert c.results() == []


def test_shards_merge_and_pickle() -> None:
    first, second = collector(), collector()
    first.update([3], [found(0.5)])
    second.update([3, 5], [found(0.75), found(0.25)])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.results() == [record(3, 0.5), record(5, 0.25)]
    assert second.results() == [record(3, 0.75), record(5, 0.25)]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (RecordCollector(TRUTH, [7, 2], ("bbox",), image_ids=[3]), "sizes"),
        (RecordCollector(TRUTH, [2, 7], ("bbox",)), "category_ids"),
        (RecordCollector(TRUTH, [7, 2], ("bbox", "segm")), "iou_types"),
    ],
)
def test_shards_of_different_evaluations_do_not_merge(other: RecordCollector, name: str) -> None:
    with pytest.raises(ValueError, match=f"these differ in {name}"):
        collector().merge(other)


def test_chosen_images_alone() -> None:
    c = collector(image_ids=[5])
    c.update([5], [found(0.5)])
    with pytest.raises(ValueError, match="image id 3 is not among the images to score"):
        c.update([3], [found(0.5)])
    with pytest.raises(ValueError, match=r"image ids \[4\] are not in the ground truth"):
        collector(image_ids=[3, 4])


def test_bad_predictions_are_named() -> None:
    c = RecordCollector(TRUTH, [7, 2], ("segm",))
    with pytest.raises(ValueError, match="1 image ids but 2 predictions"):
        c.update([3], [found(0.5), found(0.5)])
    with pytest.raises(ValueError, match=r"image 3: predictions are for .* \(60, 40\)"):
        c.update([3], [found(0.5, size=(60, 40))])
    with pytest.raises(ValueError, match="image 5: predictions have no masks"):
        c.update([5], [found(0.5)])
    c.update([5], [found(0.5, 0)])
    with pytest.raises(ValueError, match="image 3: 1 of 1 predictions have a score or box"):
        collector().update([3], [found(float("nan"))])


def test_the_size_of_an_image_that_does_not_give_it_is_not_checked() -> None:
    c = collector()
    c.update([8], [found(0.5, size=(9, 9))])
    assert c.results() == [record(8, 0.5)]


def test_unknown_category_ids() -> None:
    with pytest.raises(ValueError, match=r"category ids \[9\] are not in the ground truth"):
        RecordCollector(TRUTH, [7, 9], ("bbox",))
