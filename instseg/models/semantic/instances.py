"""Objects out of the class maps of semantic networks: components and watersheds.

Every class is taken by itself: the pixels that belong to it, the *extent*, are cut into objects
by one of three rules. What "belongs" means follows from the layout of the network's outputs:

==============  ==============================  ================================  ===============
layout          outputs                         extent                            inside
==============  ==============================  ================================  ===============
``multiclass``  background, then classes        best class, where the classes     the class
                (softmax)                       together reach the threshold
``multilabel``  classes (sigmoid)               class reaches the threshold       the class
``border``      background, inside, border of   inside and border together        inside less
                an object (softmax); one class  reach the threshold               border
==============  ==============================  ================================  ===============

The last column is where `MarkerWatershed` looks for its markers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from instseg.ops.label_images import label_rles
from instseg.structures import IGNORE, Instances, SemanticMap, SparseMasks
from instseg.structures.masks import RLE

Layout = Literal["multiclass", "multilabel", "border"]
Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]


class _ClassMap(NamedTuple):
    """One class in ``[H, W]``: where it is, how probable, and how far inside of an object."""

    extent: Mask
    probability: Scores
    inside: Scores


class _Found(NamedTuple):
    """One object."""

    score: float
    label: int
    box: tuple[float, float, float, float]
    mask: RLE


@dataclass(kw_only=True)
class InstanceFinder(ABC):
    """From the predicted map of an image to the objects in it, best first, on the CPU.

    Boxes enclose the masks' pixels tightly. An object's score is the mean probability of its class
    over its pixels (inside and border together in the layout ``border``).

    Args:
        layout: what the scores' channels are, see above.
        threshold: the least probability of the extent's pixels; None takes the map's own labels.
        min_area: objects of fewer pixels are left out.
        connectivity: 1: pixels touch along an edge; 2: at a corner too.
        fill_holes: what an extent encloses belongs to it.
        max_detections: only so many, the best, are kept; None keeps all.

    Raises:
        ValueError: an argument is out of its range; called with a map that has no scores or is not
            of the layout.
    """

    layout: Layout = "multiclass"
    threshold: float | None = None
    min_area: int = 1
    connectivity: int = 1
    fill_holes: bool = False
    max_detections: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            known = ", ".join(get_args(Layout))
            raise ValueError(f"layout must be one of {known}, got {self.layout!r}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be None or between 0 and 1, got {self.threshold}")
        if self.connectivity not in (1, 2):
            raise ValueError(
                f"connectivity must be 1 (edges) or 2 (corners too), got {self.connectivity}"
            )
        if self.max_detections is not None:
            _at_least("max_detections", self.max_detections, 1)
        _at_least("min_area", self.min_area, 1)

    def __call__(self, semantic: SemanticMap) -> Instances:
        """The objects in the image whose map with scores is ``semantic``."""
        found: list[_Found] = []
        for label, class_map in enumerate(self._classes(semantic)):
            found += self._objects(label, class_map)
        found.sort(key=lambda item: -item.score)
        found = found[: self.max_detections]
        size = semantic.image_size
        return Instances(
            image_size=size,
            boxes=torch.tensor([item.box for item in found], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([item.label for item in found], dtype=torch.int64),
            scores=torch.tensor([item.score for item in found], dtype=torch.float32),
            masks=SparseMasks([item.mask for item in found], size, size),
        )

    @abstractmethod
    def _separate(self, class_map: _ClassMap) -> Labels:
        """``[H, W]``: 0 where no object is, and the objects' numbers, that are below 2**31."""

    def _components(self, mask: Mask) -> Labels:
        structure = ndimage.generate_binary_structure(2, self.connectivity)
        labels: Labels = ndimage.label(mask, structure)[0]
        return labels

    def _flood(self, heights: Scores, markers: Labels, mask: Mask) -> Labels:
        labels: Labels = watershed(heights, markers, connectivity=self.connectivity, mask=mask)
        return labels.astype(np.int32, copy=False)

    def _classes(self, semantic: SemanticMap) -> Iterator[_ClassMap]:
        """Every class, in the order of the data set's labels."""
        labels, scores = self._checked(semantic)
        if self.layout == "multilabel":
            for own, score in zip(labels, scores, strict=True):
                yield self._class_map(self._reached(score, own == 1), score, score)
            return
        foreground = scores[1:].sum(axis=0)
        known = (labels != 0) & (labels != IGNORE)
        extent = self._reached(foreground, known)
        if self.layout == "border":
            yield self._class_map(extent, foreground, scores[1] - scores[2])
            return
        best = np.where(known, labels, 1 + scores[1:].argmax(axis=0))
        for label, score in enumerate(scores[1:], start=1):
            yield self._class_map(extent & (best == label), score, score)

    def _checked(self, semantic: SemanticMap) -> tuple[npt.NDArray[np.uint8], Scores]:
        if semantic.scores is None:
            raise ValueError(
                "the map has no scores: objects are found in predictions, not in ground truth"
            )
        channels, multi_label = semantic.scores.shape[0], semantic.is_multi_label
        fits = {
            "multiclass": not multi_label and channels >= 2,
            "multilabel": multi_label,
            "border": not multi_label and channels == 3,
        }
        if not fits[self.layout]:
            kind = "overlapping" if multi_label else "exclusive"
            raise ValueError(
                f"layout {self.layout!r} does not fit a map of {channels} {kind} classes: "
                "'multiclass' needs exclusive ones with a background, 'multilabel' overlapping "
                "ones, 'border' background, inside and border"
            )
        scores = semantic.scores.detach().float().cpu().numpy()
        return semantic.labels.cpu().numpy(), scores

    def _reached(self, probability: Scores, labelled: Mask) -> Mask:
        return labelled if self.threshold is None else probability >= self.threshold

    def _class_map(self, extent: Mask, probability: Scores, inside: Scores) -> _ClassMap:
        if self.fill_holes:
            # Where objects' pixels touch at edges only, background may pass at corners.
            around = ndimage.generate_binary_structure(2, 3 - self.connectivity)
            extent = ndimage.binary_fill_holes(extent, around)
        return _ClassMap(extent, probability, inside)

    def _objects(self, label: int, class_map: _ClassMap) -> list[_Found]:
        objects = self._separate(class_map)
        flat = objects.ravel()
        areas = np.bincount(flat)
        sums = np.bincount(flat, weights=class_map.probability.ravel())
        kept = areas >= self.min_area
        kept[0] = False
        boxes = ndimage.find_objects(objects)
        return [
            _Found(min(float(sums[i] / areas[i]), 1.0), label, _box(boxes[i - 1]), mask)
            for i, mask in label_rles(np.where(kept[objects], objects, 0))
        ]


@dataclass(kw_only=True)
class ConnectedComponents(InstanceFinder):
    """Pixels of one class that hang together are one object.

    In the layout ``border`` touching objects hang together by their borders; `MarkerWatershed`
    parts them.
    """

    def _separate(self, class_map: _ClassMap) -> Labels:
        return self._components(class_map.extent)


@dataclass(kw_only=True)
class DistanceWatershed(InstanceFinder):
    """Components cut at their waists: the watershed of the distance to the background.

    An object is what drains to one maximum of the distance transform. Two maxima count as one
    unless the distance falls by at least ``h`` between them (extended maxima: Soille,
    Morphological Image Analysis, section 6.3); a component without any is one object. The
    image's edge is no background.

    Args:
        h: in pixels; the greater, the fewer cuts.
        smoothing: deviation, in pixels, of the Gaussian that the distances are smoothed with; 0
            leaves them.
    """

    h: float = 1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.h <= 0:
            raise ValueError(f"h must be greater than 0, got {self.h}")
        _at_least("smoothing", self.smoothing, 0)

    def _separate(self, class_map: _ClassMap) -> Labels:
        extent = class_map.extent
        if extent.all():  # the distance to nothing is not defined
            return self._components(extent)
        distance = ndimage.distance_transform_edt(extent).astype(np.float32)
        if self.smoothing:
            distance = ndimage.gaussian_filter(distance, self.smoothing)
            distance[~extent] = 0
        return self._flood(-distance, self._markers(distance, extent), extent)

    def _markers(self, distance: Scores, extent: Mask) -> Labels:
        structure = ndimage.generate_binary_structure(2, self.connectivity)
        lowered = reconstruction(distance - self.h, distance, footprint=structure)
        maxima = extent & local_maxima(lowered, connectivity=self.connectivity)
        components = self._components(extent)
        marked = np.zeros(components.max() + 1, dtype=bool)
        marked[components[maxima]] = True
        return self._components(maxima | (extent & ~marked[components]))


@dataclass(kw_only=True)
class MarkerWatershed(InstanceFinder):
    """The extent, flooded from markers: the components of what is surely inside of an object.

    The flood goes from the most probable pixels to the least, so that two objects meet where
    between their markers the inside is least: in a valley of probability, or on a border. What no
    marker reaches is left out.

    Args:
        marker_threshold: markers are where the inside (see the top of this file) is at least this.
        min_marker_area: markers of fewer pixels are left out.
        smoothing: deviation, in pixels, of the Gaussian that the inside is smoothed with; 0 leaves
            it.
    """

    marker_threshold: float = 0.7
    min_marker_area: int = 1
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.marker_threshold < 1:
            raise ValueError(
                f"marker_threshold must be between 0 and 1, got {self.marker_threshold}"
            )
        _at_least("min_marker_area", self.min_marker_area, 1)
        _at_least("smoothing", self.smoothing, 0)

    def _separate(self, class_map: _ClassMap) -> Labels:
        extent, inside = class_map.extent, class_map.inside
        if self.smoothing:
            inside = ndimage.gaussian_filter(inside, self.smoothing)
        markers = self._components(extent & (inside >= self.marker_threshold))
        large = np.bincount(markers.ravel()) >= self.min_marker_area
        return self._flood(-inside, np.where(large[markers], markers, 0), extent)


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _box(place: tuple[slice, slice]) -> tuple[float, float, float, float]:
    """Corners x1 y1 x2 y2 of an object's place ``(rows, columns)``."""
    rows, columns = place
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)
