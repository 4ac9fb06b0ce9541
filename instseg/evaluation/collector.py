"""Predictions of models collected image by image as result records, whatever then scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instseg.evaluation.ground_truth import image_sizes
from instseg.evaluation.results import instances_to_results
from instseg.structures import Instances

SHAPES = ("bbox", "segm")
"""What records hold and can be scored by."""


class RecordCollector:
    """Collects the detections of each image once; evaluators add the scoring.

    Args:
        ground_truth: a prepared COCO dictionary.
        category_ids: the category id of each label, in order.
        iou_types: "bbox", "segm" or both.
        image_ids: keep to these images alone; None takes all.

    Raises:
        ValueError: an unknown category id or image id.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        category_ids: Sequence[int],
        iou_types: Sequence[str],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        unknown = set(category_ids) - {c["id"] for c in ground_truth["categories"]}
        if unknown:
            raise ValueError(f"category ids {sorted(unknown)} are not in the ground truth")
        if image_ids is not None:
            ground_truth = _restricted(ground_truth, image_ids)
        self.iou_types = tuple(iou_types)
        self.ground_truth = ground_truth
        self._category_ids = list(category_ids)
        self._sizes = image_sizes(ground_truth)
        self._records: dict[int, list[dict[str, Any]]] = {}
        self._counts: dict[int, int] = {}

    @property
    def detections(self) -> int:
        """How many detections were added."""
        return sum(self._counts.values())

    def update(self, image_ids: Sequence[int], predictions: Sequence[Instances]) -> None:
        """Add the detections of some images.

        An image that was added before is passed over: a distributed sampler pads with repeats.

        Args:
            image_ids: ids in the ground truth.
            predictions: for each, detections in the coordinates of the original image.

        Raises:
            ValueError: an id is not among the scored images, the image size is not that of the
                ground truth, masks are to be scored and there are none, or for the reasons of
                `instances_to_results`; the message names the image.
        """
        if len(image_ids) != len(predictions):
            raise ValueError(f"{len(image_ids)} image ids but {len(predictions)} predictions")
        new: dict[int, list[dict[str, Any]]] = {}
        for image_id, instances in zip(image_ids, predictions, strict=True):
            self._check(image_id, instances)
            if image_id not in self._counts and image_id not in new:
                new[image_id] = instances_to_results(image_id, instances, self._category_ids)
        self._add(new)

    def _add(self, records: Mapping[int, list[dict[str, Any]]]) -> None:
        """Keep the records of images not seen before, by image id."""
        self._records.update(records)
        self._counts.update({image_id: len(found) for image_id, found in records.items()})

    def merge(self, other: RecordCollector) -> None:
        """Add the images of ``other`` that this one has not seen.

        Raises:
            ValueError: ``other`` is for other images, categories or IoU types.
        """
        theirs = other._made_of()
        for name, own in self._made_of().items():
            if own != theirs[name]:
                raise ValueError(
                    "evaluators can be merged only if they were made with the same ground truth, "
                    f"category ids and IoU types; these differ in {name}"
                )
        self._records = other._records | self._records
        self._counts = other._counts | self._counts

    def _made_of(self) -> dict[str, object]:
        return {
            "sizes": self._sizes,
            "categories": self.ground_truth["categories"],
            "annotations": len(self.ground_truth["annotations"]),
            "category_ids": self._category_ids,
            "iou_types": self.iou_types,
        }

    def results(self) -> list[dict[str, Any]]:
        """The records so far, by image id; within an image in the order they were given."""
        return [record for _, records in sorted(self._records.items()) for record in records]

    def reset(self) -> None:
        """Forget all predictions."""
        self._records.clear()
        self._counts.clear()

    def _check(self, image_id: int, instances: Instances) -> None:
        if image_id not in self._sizes:
            raise ValueError(f"image id {image_id} is not among the images to score")
        size = self._sizes[image_id]
        if size is not None and tuple(instances.image_size) != size:
            raise ValueError(
                f"image {image_id}: predictions are for (height, width) "
                f"{tuple(instances.image_size)}, the ground truth says {size}; map them back to "
                "the original image first"
            )
        if "segm" in self.iou_types and len(instances) and instances.masks is None:
            raise ValueError(
                f"image {image_id}: predictions have no masks; ask for the IoU type 'bbox' alone"
            )


def check_iou_types(iou_types: Sequence[str]) -> None:
    """Raise ValueError unless ``iou_types`` are some of `SHAPES`."""
    if isinstance(iou_types, str) or not iou_types or set(iou_types) - set(SHAPES):
        raise ValueError(f"iou_types must be some of {SHAPES}, got {iou_types!r}")


def _restricted(ground_truth: dict[str, Any], image_ids: Sequence[int]) -> dict[str, Any]:
    chosen = set(image_ids)
    unknown = chosen - {i["id"] for i in ground_truth["images"]}
    if unknown:
        raise ValueError(f"image ids {sorted(unknown)} are not in the ground truth")
    if not chosen:
        raise ValueError("image_ids is empty, so nothing is to be scored; None takes all images")
    return {
        "images": [i for i in ground_truth["images"] if i["id"] in chosen],
        "categories": ground_truth["categories"],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in chosen],
    }
