"""COCO average precision and recall of boxes, masks and mask boundaries.

Source: https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instseg.evaluation.accumulate import PrecisionRecall, accumulate
from instseg.evaluation.backends import Backend, score_hotcoco, score_pycocotools
from instseg.evaluation.bootstrap import draw_weights, replicate
from instseg.evaluation.collector import SHAPES, RecordCollector
from instseg.evaluation.fast_files import read_fast
from instseg.evaluation.ground_truth import (
    GroundTruthError,
    has_segmentations,
    prepare_ground_truth,
)
from instseg.evaluation.json_file import read_json
from instseg.evaluation.matching import Matches, match
from instseg.evaluation.params import IOU_TYPES, CocoParams, metrics_of
from instseg.evaluation.results import check_results, read_results
from instseg.evaluation.scores import BootstrapOptions, CocoScores, make_scores
from instseg.evaluation.stream import PAIR_IOUS, MatchStream
from instseg.evaluation.tables import ScoringData, Vocabulary

OTHER_BACKENDS: dict[str, Backend] = {
    "hotcoco": score_hotcoco,
    "pycocotools": score_pycocotools,
}
BACKENDS = ("instseg", *OTHER_BACKENDS)
"""Who computes COCO's tables. All three agree to the last digits; "instseg" streams."""

METRIC_NAMES = tuple(m.name for m in metrics_of(CocoParams()))
"""COCO's twelve figures, in the order it prints them."""


class CocoEvaluator(RecordCollector):
    """Takes predictions image by image and scores them.

    Every image of the ground truth counts, predicted or not, as in COCO. Detections are matched as
    they come and then forgotten, so that memory stays small; an evaluator can be pickled, and those
    of several processes merged.

    Args:
        ground_truth: a COCO dictionary; it is copied, not changed.
        category_ids: the category id of each label, in order.
        iou_types: some of `IOU_TYPES`.
        params: thresholds, areas and limits; COCO's by default.
        intervals: how confidence intervals are made.
        backend: one of `BACKENDS`. Other than "instseg" keeps all records until `compute`.
        image_ids: score these images alone.
        keep_results: keep all records for `results`.

    Raises:
        ValueError: an unknown IoU type, backend, category id or image id.
        GroundTruthError: see `prepare_ground_truth`; among others, "segm" without segmentations.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        category_ids: Sequence[int],
        *,
        iou_types: Sequence[str] = SHAPES,
        params: CocoParams | None = None,
        intervals: BootstrapOptions | None = None,
        backend: str = "instseg",
        image_ids: Sequence[int] | None = None,
        keep_results: bool = False,
    ) -> None:
        check_choices(iou_types, backend)
        prepared = prepare_ground_truth(ground_truth, shapes_of(iou_types))
        super().__init__(prepared, category_ids, shapes_of(iou_types), image_ids)
        self.params = params or CocoParams()
        self._options = intervals or BootstrapOptions()
        self._backend = backend
        self._kept = keep_results or backend != "instseg"
        self._streams = {t: MatchStream(self.ground_truth, t, self.params) for t in iou_types}

    def _add(self, records: Mapping[int, list[dict[str, Any]]]) -> None:
        """Match the records of new images, and keep them only if they are asked for later."""
        for stream in self._streams.values():
            stream.add(records)
        super()._add(records)
        if not self._kept:
            self._records.clear()

    def merge(self, other: RecordCollector) -> None:
        """Add the images of ``other`` that this one has not seen: those of another process, say.

        Raises:
            ValueError: ``other`` is for another ground truth, other categories or other parameters.
        """
        if not isinstance(other, CocoEvaluator) or self._settings() != other._settings():
            raise ValueError(
                "only evaluators of the same IoU types, parameters and backend can be merged"
            )
        super().merge(other)
        for iou_type, stream in self._streams.items():
            stream.merge(other._streams[iou_type])

    def _settings(self) -> tuple[object, ...]:
        return tuple(self._streams), self.params, self._backend, self._kept

    def results(self) -> list[dict[str, Any]]:
        """The records so far, by image id; within an image in the order they were given.

        Raises:
            ValueError: they were not kept.
        """
        if not self._kept:
            raise ValueError("records were not kept; make the evaluator with keep_results=True")
        return super().results()

    def compute(self) -> dict[str, CocoScores]:
        """Score what was added, by IoU type."""
        scores = {}
        for iou_type, stream in self._streams.items():
            other = OTHER_BACKENDS.get(self._backend) if iou_type != "boundary" else None
            data = other and ScoringData.of(self.ground_truth, self.results(), iou_type)
            scores[iou_type] = scores_of_matches(
                stream.matches(),
                iou_type,
                stream.vocabulary,
                category_names(self.ground_truth),
                self.detections,
                self.params,
                self._options,
                tables=other(data, self.params) if other and data else None,
            )
        return scores

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        for stream in self._streams.values():
            stream.reset()


def evaluate_results(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str] = SHAPES,
    backend: str = "instseg",
    *,
    params: CocoParams | None = None,
    intervals: BootstrapOptions | None = None,
) -> dict[str, CocoScores]:
    """Score result records against a COCO dictionary; neither is changed.

    Returns:
        Scores by IoU type.

    Raises:
        ValueError: an unknown IoU type or backend.
        GroundTruthError: see `prepare_ground_truth`.
        ResultsError: see `check_results`.
    """
    check_choices(iou_types, backend)
    prepared = prepare_ground_truth(ground_truth, shapes_of(iou_types))
    checked = check_results(results, prepared, shapes_of(iou_types))
    return score(prepared, checked, iou_types, backend, params, intervals)


def evaluate_files(
    gt: Path,
    dt: Path,
    iou_types: Sequence[str] | None = None,
    backend: str = "instseg",
    *,
    params: CocoParams | None = None,
    intervals: BootstrapOptions | None = None,
) -> dict[str, CocoScores]:
    """Score a result file against an annotation file.

    Args:
        gt: COCO annotations.
        dt: COCO results.
        iou_types: some of `IOU_TYPES`. None scores boxes, and masks if both files have them.
        backend: one of `BACKENDS`.
        params: thresholds, areas and limits; COCO's by default.
        intervals: how confidence intervals are made.

    Returns:
        Scores by IoU type.

    Raises:
        ValueError: as `evaluate_results`; the message names the file.
        OSError: a file cannot be read.
    """
    check_choices(iou_types or IOU_TYPES, backend)
    data = None if "boundary" in (iou_types or ()) else read_fast(gt, dt, iou_types)
    if data is not None:
        return {d.iou_type: score_data(d, backend, params, intervals) for d in data}
    prepared, (checked,), iou_types = read_files(gt, [dt], iou_types)
    return score(prepared, checked, iou_types, backend, params, intervals)


def read_files(
    gt: Path, dts: Sequence[Path], iou_types: Sequence[str] | None = None
) -> tuple[dict[str, Any], list[list[dict[str, Any]]], tuple[str, ...]]:
    """Read and check an annotation file and result files for it.

    Returns:
        The prepared ground truth, the checked records of each result file and the IoU types: those
        asked for, or boxes, and masks if all files have them.

    Raises:
        GroundTruthError, ResultsError: as `evaluate_files`.
        OSError: a file cannot be read.
    """
    truth = read_json(gt, GroundTruthError)
    records = [read_results(dt) for dt in dts]
    kinds = tuple(iou_types or _shared_iou_types(truth, records))
    shapes = shapes_of(kinds)
    prepared = prepare_ground_truth(truth, shapes, source=str(gt))
    pairs = zip(dts, records, strict=True)
    return prepared, [check_results(r, prepared, shapes, source=str(dt)) for dt, r in pairs], kinds


def score(
    ground_truth: dict[str, Any],
    records: Sequence[dict[str, Any]],
    iou_types: Sequence[str],
    backend: str,
    params: CocoParams | None = None,
    intervals: BootstrapOptions | None = None,
) -> dict[str, CocoScores]:
    """Score checked records against prepared ground truth, by IoU type."""
    return {
        iou_type: score_data(
            ScoringData.of(ground_truth, records, iou_type), backend, params, intervals
        )
        for iou_type in iou_types
    }


def score_data(
    data: ScoringData,
    backend: str,
    params: CocoParams | None = None,
    intervals: BootstrapOptions | None = None,
) -> CocoScores:
    """Score columns. Boundaries are scored by instseg whatever the backend: the others cannot."""
    params, options = params or CocoParams(), intervals or BootstrapOptions()
    other = OTHER_BACKENDS.get(backend) if data.iou_type != "boundary" else None
    matches = None
    if other is None or options.replicates:
        matches = match(data.detections, data.truth, params, PAIR_IOUS[data.iou_type])
    return scores_of_matches(
        matches,
        data.iou_type,
        data.vocabulary,
        data.category_names,
        len(data.detections),
        params,
        options,
        tables=other(data, params) if other else None,
    )


def scores_of_matches(
    matches: Matches | None,
    iou_type: str,
    vocabulary: Vocabulary,
    names: list[str],
    detections: int,
    params: CocoParams,
    options: BootstrapOptions,
    tables: PrecisionRecall | None = None,
) -> CocoScores:
    """Figures and intervals; the figures are those of ``tables`` where they are given."""
    names, images = ["all"] if params.class_agnostic else names, len(vocabulary.images)
    replicates = None
    if tables is None:
        assert matches is not None
        tables = accumulate(matches, params, len(names))
    if options.replicates:
        assert matches is not None
        weights = draw_weights(images, options.replicates, options.seed)
        replicates = replicate(matches, params, len(names), weights)
    return make_scores(
        tables,
        replicates,
        params,
        options,
        iou_type=iou_type,
        categories=names,
        images=images,
        detections=detections,
    )


def match_records(
    ground_truth: dict[str, Any],
    records: Sequence[dict[str, Any]],
    iou_type: str,
    params: CocoParams,
) -> Matches:
    """Match checked records to prepared ground truth."""
    data = ScoringData.of(ground_truth, records, iou_type)
    return match(data.detections, data.truth, params, PAIR_IOUS[iou_type])


def shapes_of(iou_types: Sequence[str]) -> tuple[str, ...]:
    """What annotations and records must hold for some IoU types; a boundary is one of a mask."""
    needed = {*iou_types, "segm"} if "boundary" in iou_types else iou_types
    return tuple(t for t in IOU_TYPES if t in needed)


def check_choices(iou_types: Sequence[str], backend: str) -> None:
    """Raise ValueError for an unknown IoU type or backend."""
    unknown = set(iou_types) - set(IOU_TYPES)
    if isinstance(iou_types, str) or unknown or not iou_types:
        raise ValueError(f"iou_types must be some of {IOU_TYPES}, got {iou_types!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def category_names(ground_truth: dict[str, Any]) -> list[str]:
    """The names of the tables' categories, which are in order of id."""
    return [c["name"] for c in sorted(ground_truth["categories"], key=lambda c: int(c["id"]))]


def _shared_iou_types(truth: Any, results: Sequence[list[Any]]) -> tuple[str, ...]:
    # Results of no detections do not say what they are for.
    masks = all(has_segmentations(records) or not records for records in results)
    annotations = truth.get("annotations") if isinstance(truth, dict) else None
    return SHAPES if masks and has_segmentations(annotations) else ("bbox",)
