"""The evaluation report: analysis, pictures and page put together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instseg.data.image_io import ImageError, read_image
from instseg.data.tiff import TiffError, is_tiff, read_layout, split_page
from instseg.evaluation.analysis import analyse, as_one_category
from instseg.evaluation.ground_truth import image_sizes
from instseg.evaluation.reasons import Reasons, find_reasons
from instseg.evaluation.scores import BootstrapOptions, CocoScores
from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.visualization.draw_map import displayable
from instseg.visualization.evaluation_picture import Outcome, Shape, draw_outcomes
from instseg.visualization.report import write_report

logger = logging.getLogger(__name__)

_BLANK = 128  # gray
_LARGEST_BLANK = 8192  # pixels
_EXPLAINED = ("bbox", "segm")

Image = npt.NDArray[np.uint8]


def write_evaluation_report(
    folder: Path,
    ground_truth: dict[str, Any],
    records: list[dict[str, Any]],
    scores: Mapping[str, CocoScores],
    *,
    title: str,
    ground_truth_name: str,
    results_name: str,
    options: BootstrapOptions,
    images: Mapping[int, Path] | None = None,
) -> Path:
    """Find the reasons for the scores and write all as a page; see `write_report`.

    Args:
        folder: made if need be.
        ground_truth: as `prepare_ground_truth` gives it.
        records: as `check_results` gives them.
        scores: of these records, by IoU type. Boundary IoU is shown in the summary alone.
        title: of the page.
        ground_truth_name: what to call the ground truth, as a rule its file.
        results_name: what to call the results.
        options: how the scores' intervals were made.
        images: the file of each image id. Where there is none, or it cannot be used, shapes are
            drawn on gray, with one warning that counts them; None draws all on gray without one.

    Returns:
        The path of the page.

    Raises:
        ValueError: neither boxes nor masks were scored.
        OSError: a file cannot be written.
    """
    explained = [iou_type for iou_type in scores if iou_type in _EXPLAINED]
    if not explained:
        raise ValueError(f"a report needs scores of boxes or masks, got {tuple(scores)}")
    if scores[explained[0]].params.class_agnostic:
        ground_truth, records = as_one_category(ground_truth, records)
    reasons = {t: find_reasons(ground_truth, records, t) for t in explained}
    document = analyse(
        ground_truth,
        records,
        scores,
        reasons,
        title=title,
        ground_truth_name=ground_truth_name,
        results_name=results_name,
        options=options,
    )
    painter = _Painter(ground_truth, records, reasons, images)
    page = write_report(document, folder, painter.picture)
    painter.warn()
    return page


class _Painter:
    """Draws what the reasons say of an image."""

    def __init__(
        self,
        ground_truth: dict[str, Any],
        records: list[dict[str, Any]],
        reasons: Mapping[str, Reasons],
        files: Mapping[int, Path] | None,
    ) -> None:
        self._sizes = image_sizes(ground_truth)
        self._annotations = {a["id"]: a for a in ground_truth["annotations"]}
        self._names = {c["id"]: c["name"] for c in ground_truth["categories"]}
        self._records = records
        self._reasons = reasons
        self._files = files
        self._defects: dict[int, tuple[str, str]] = {}  # image id: kind, message
        # All that is asked of an image comes in a row.
        self._read = lru_cache(maxsize=1)(self._read_image)

    def picture(self, iou_type: str, image_id: int, box: Sequence[float] | None) -> Image | None:
        """The image with its shapes, or the part around a box; a `PictureSource`."""
        shapes = self._shapes(iou_type, image_id)
        image, note = self._read(image_id), ""
        if image is None:
            boxes = [shape.box for shape in shapes]
            image = _blank(self._sizes[image_id], boxes if box is None else [*boxes, box])
            note = "no image file" if box is None else ""
        if box is not None and not _is_inside(box, image):
            return None
        return draw_outcomes(image, shapes, around=box, note=note)

    def warn(self) -> None:
        """One line on all images that could not be shown."""
        if not self._defects:
            return
        kinds = Counter(kind for kind, _ in self._defects.values())
        logger.warning(
            "report: %s of the images shown are drawn on gray: %s; the first: %s",
            len(self._defects),
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            next(iter(self._defects.values()))[1],
        )

    def _read_image(self, image_id: int) -> Image | None:
        if self._files is None:
            return None
        if image_id not in self._files or not split_page(self._files[image_id])[0].is_file():
            path = self._files.get(image_id, f"image {image_id}")
            self._defects[image_id] = "missing", f"{path}: there is no such file"
            return None
        path = self._files[image_id]
        try:
            image = _read_to_show(path)
        except ImageError as error:
            self._defects[image_id] = "unreadable", str(error)
            return None
        height, width = image.shape[:2]
        expected = self._sizes[image_id]
        if expected is not None and expected != (height, width):
            self._defects[image_id] = (
                "of another size",
                f"{path}: is {height} x {width} pixels, the ground truth says "
                f"{expected[0]} x {expected[1]}",
            )
            return None
        return image

    def _shapes(self, iou_type: str, image_id: int) -> list[Shape]:
        outcome = self._reasons[iou_type].outcomes[image_id]
        shapes = (
            (Outcome.TRUTH, [self._annotations[annotation] for _, annotation in outcome.found]),
            (Outcome.FOUND, [self._records[record] for record, _ in outcome.found]),
            (Outcome.FALSE, [self._records[record] for record in outcome.false]),
            (Outcome.MISSED, [self._annotations[annotation] for annotation in outcome.missed]),
        )
        size = self._sizes[image_id] if iou_type == "segm" else None
        return [
            _shape(kind, record, self._names[record["category_id"]], size)
            for kind, of_kind in shapes
            for record in of_kind
        ]


def _read_to_show(path: Path) -> Image:
    """An image of any number of channels and 8 or 16 bits as RGB.

    Raises:
        ImageError: it cannot be read.
    """
    file, page = split_page(path)
    channels = 3
    try:
        if is_tiff(file):
            layout = read_layout(file, page)
            channels = layout.colours if layout.pages == 1 else layout.pages
    except TiffError as error:
        raise ImageError(path, str(error)) from error
    # Cameras of 16 bits use a small part of their range, which would look black.
    pixels = read_image(path, channels=channels, bits16="stretch")
    return displayable(torch.from_numpy(pixels).permute(2, 0, 1))


def _shape(outcome: Outcome, record: dict[str, Any], name: str, size: Size | None) -> Shape:
    """An annotation or a detection; its mask if the image's ``size`` is given, else its box."""
    label = ""
    if outcome is Outcome.MISSED:
        label = f"{name} missed"
    elif outcome is not Outcome.TRUTH:
        label = f"{name} {record['score']:.2f}"
    if size is None:
        return Shape(outcome, record["bbox"], None, label)
    mask = record["segmentation"]
    if not isinstance(mask, dict):
        polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in mask]
        mask = rle.from_polygons(polygons, size)
    x1, y1, x2, y2 = rle.to_box(mask)
    return Shape(outcome, (x1, y1, x2 - x1, y2 - y1), mask, label)


def _blank(size: Size | None, boxes: Iterable[Sequence[float]]) -> Image:
    """A gray image; where its size is not known, large enough for the boxes."""
    if size is None:
        ends = np.array([(y + height, x + width) for x, y, width, height in boxes])
        sides = np.ceil(ends.max(axis=0)).clip(1, _LARGEST_BLANK).astype(int)
        size = sides[0], sides[1]
    return np.full((*size, 3), _BLANK, np.uint8)


def _is_inside(box: Sequence[float], image: Image) -> bool:
    """Whether any of the box is in the image."""
    x, y, width, height = box
    return x < image.shape[1] and y < image.shape[0] and x + width > 0 and y + height > 0
