"""What COCO scoring depends on, and the figures it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

IOU_TYPES = ("bbox", "segm", "boundary")
"""What is compared: boxes, masks, or masks near their contours (Boundary IoU)."""


def _coco_areas() -> dict[str, tuple[float, float]]:
    return {
        "all": (0.0, 1e10),
        "small": (0.0, 32.0**2),
        "medium": (32.0**2, 96.0**2),
        "large": (96.0**2, 1e10),
    }


@dataclass(frozen=True)
class CocoParams:
    """The parameters of a scoring; the defaults are COCO's.

    Args:
        iou_thresholds: T thresholds in (0, 1].
        areas: A named ranges of object area in pixels, both ends included; the first is "all".
        max_detections: limits on the detections of an image and category, ascending: recall is
            given at each of them, precision at the last.
        class_agnostic: compare objects of all categories as if they were one.
    """

    iou_thresholds: tuple[float, ...] = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
    areas: dict[str, tuple[float, float]] = field(default_factory=_coco_areas)
    max_detections: tuple[int, ...] = (1, 10, 100)
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        thresholds, limits = self.iou_thresholds, self.max_detections
        if not thresholds or not all(0 < t <= 1 for t in thresholds):
            raise ValueError(f"iou_thresholds must lie in (0, 1], got {thresholds}")
        if list(thresholds) != sorted(set(thresholds)):
            raise ValueError(f"iou_thresholds must ascend, got {thresholds}")
        if not limits or list(limits) != sorted(set(limits)) or limits[0] < 1:
            raise ValueError(f"max_detections must be ascending integers >= 1, got {limits}")
        if next(iter(self.areas), None) != "all":
            raise ValueError(f"the first of areas must be named 'all', got {tuple(self.areas)}")
        for name, (low, high) in self.areas.items():
            if not name.isidentifier():
                raise ValueError(f"areas: a name must be letters, digits and _, got {name!r}")
            if not 0 <= low < high < math.inf:
                raise ValueError(f"areas: {name!r} must be (low, high), got {(low, high)}")

    def threshold_index(self, iou: float) -> int | None:
        """The position of a threshold; None if it is not among them."""
        distances = np.abs(np.array(self.iou_thresholds) - iou)
        nearest = int(distances.argmin())
        return nearest if distances[nearest] < 1e-9 else None


@dataclass(frozen=True)
class Metric:
    """One summary figure, a mean over categories.

    Args:
        name: its short name.
        recall: average recall rather than precision.
        iou: the IoU threshold; None averages over all of them.
        area: the name of the area range.
        max_detections: the limit on detections.
    """

    name: str
    recall: bool = False
    iou: float | None = None
    area: str = "all"
    max_detections: int = 100


def metrics_of(params: CocoParams) -> tuple[Metric, ...]:
    """The summary figures of some parameters; COCO's twelve, in its order, for its own.

    They are AP, AP50 and AP75 (where these thresholds are among them), AP for each area, AR for
    each limit and AR for each area. Areas are named by their first letter, as in APs, if no other
    begins so, else by their name, as in AP_tiny.
    """
    last = params.max_detections[-1]
    suffixes = {area: _suffix(area, tuple(params.areas)) for area in params.areas if area != "all"}
    return (
        Metric("AP", max_detections=last),
        *(
            Metric(f"AP{round(iou * 100)}", iou=iou, max_detections=last)
            for iou in (0.5, 0.75)
            if params.threshold_index(iou) is not None
        ),
        *(Metric(f"AP{s}", area=a, max_detections=last) for a, s in suffixes.items()),
        *(Metric(f"AR{m}", recall=True, max_detections=m) for m in params.max_detections),
        *(Metric(f"AR{s}", recall=True, area=a, max_detections=last) for a, s in suffixes.items()),
    )


def _suffix(area: str, areas: tuple[str, ...]) -> str:
    alike = [a for a in areas if a[:1] == area[:1] and a != "all"]
    return area[:1] if len(alike) == 1 else f"_{area}"
