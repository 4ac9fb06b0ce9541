"""Matches made image by image, so that masks and boxes need not be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instseg.evaluation.boundary_iou import boundary_pair_iou
from instseg.evaluation.ground_truth import image_sizes
from instseg.evaluation.matching import Matches, PairIoU, box_pair_iou, mask_pair_iou, match
from instseg.evaluation.params import CocoParams
from instseg.evaluation.tables import Ints, Truth, Vocabulary, detection_table, truth_table

PAIR_IOUS: dict[str, PairIoU] = {
    "bbox": box_pair_iou,
    "segm": mask_pair_iou,
    "boundary": boundary_pair_iou,
}


class MatchStream:
    """Matches detections to ground truth as they come; picklable, and mergeable across processes.

    About a hundred bytes remain of a detection, nothing of its mask.

    Args:
        ground_truth: a prepared COCO dictionary.
        iou_type: one of `IOU_TYPES`.
        params: what to match with.
    """

    def __init__(self, ground_truth: dict[str, Any], iou_type: str, params: CocoParams) -> None:
        self.vocabulary = Vocabulary.of(ground_truth)
        self.params = params
        self.iou_type = iou_type
        annotations = ground_truth["annotations"]
        truth = truth_table(annotations, self.vocabulary, image_sizes(ground_truth), iou_type)
        self._truth = truth[np.argsort(truth.image, kind="stable")]
        self._parts: list[Matches] = []
        self._seen = np.zeros(len(self.vocabulary.images), np.bool_)

    def add(self, records: Mapping[int, Sequence[dict[str, Any]]]) -> None:
        """Match the checked records of some new images, by image id."""
        positions = np.array([self._position(i) for i in records], dtype=np.int64)
        self._seen[positions] = True
        everything = [record for image in records.values() for record in image]
        detections = detection_table(everything, self.vocabulary, self.iou_type)
        iou = PAIR_IOUS[self.iou_type]
        self._parts.append(match(detections, self._truth_of(positions), self.params, iou))

    def merge(self, other: MatchStream) -> None:
        """Take over the images that this one has not seen."""
        new = other._seen & ~self._seen
        self._parts.extend(part.on_images(new) for part in other._parts)
        self._seen |= new

    def matches(self) -> Matches:
        """All matches; an image that was never added counts as one without detections."""
        nothing = detection_table([], self.vocabulary, self.iou_type)
        unseen = self._truth_of(np.flatnonzero(~self._seen))
        rest = match(nothing, unseen, self.params, PAIR_IOUS[self.iou_type])
        self._parts = [Matches.join(self._parts)] if self._parts else []
        return Matches.join([*self._parts, rest])

    def reset(self) -> None:
        """Forget all detections."""
        self._parts.clear()
        self._seen[:] = False

    def _position(self, image_id: int) -> int:
        return int(np.searchsorted(self.vocabulary.images, image_id))

    def _truth_of(self, positions: Ints) -> Truth:
        first = np.searchsorted(self._truth.image, positions, side="left")
        last = np.searchsorted(self._truth.image, positions, side="right")
        ranges = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
        return self._truth[np.concatenate([*ranges, np.zeros(0, np.int64)]).astype(np.int64)]
