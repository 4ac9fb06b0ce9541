"""From the configuration of a semantic network to its targets and to the scoring of its maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_semantic import SemanticConfig
from instseg.data.dataset import instances_of
from instseg.data.index import CocoIndex, Record
from instseg.data.records import Records
from instseg.data.semantic_targets import SemanticTarget
from instseg.data.weight_map import UNetWeights
from instseg.evaluation.dsb import DsbEvaluator
from instseg.evaluation.em import EmEvaluator
from instseg.evaluation.multi_label import MultiLabelEvaluator
from instseg.evaluation.semantic import SemanticEvaluator
from instseg.evaluation.threshold import ThresholdEvaluator
from instseg.evaluation.with_truth import Scorer, TruthEvaluator
from instseg.ops import instance_rles, rle
from instseg.structures import IGNORE, Instances, SemanticMap
from instseg.structures.masks import RLE

Relabel = Callable[[SemanticMap], SemanticMap]
MapScorers = dict[str, Scorer[SemanticMap, SemanticMap]]


def build_map_evaluator(
    config: Config,
    index: CocoIndex,
    class_names: Sequence[str],
    kinds: Sequence[str],
    *,
    relabel: Relabel | None = None,
) -> TruthEvaluator[SemanticMap, SemanticMap]:
    """Scores the maps of a semantic network on the ground truth of ``index``.

    Args:
        config: whose model is a `SemanticConfig`.
        index: the validation data.
        class_names: the model's classes.
        kinds: some of "semantic", "em", "threshold".
        relabel: finds the labels anew, such as by a threshold of the map's own.

    Raises:
        ConfigError: the data has other classes, or a kind is for networks of one class.
    """
    assert isinstance(config.model, SemanticConfig)
    if index.class_names != list(class_names):
        raise ConfigError(
            f"the model's classes are {', '.join(class_names)}, those of the validation data "
            f"{', '.join(index.class_names)}: maps are scored where both agree, in their order"
        )
    target = build_target(config, len(class_names))
    return TruthEvaluator(
        map_scorers(config.model, class_names, kinds, relabel),
        _Truth(index.records, lambda objects: target(objects)),
    )


def build_dsb_evaluator(
    index: CocoIndex, score_threshold: float
) -> TruthEvaluator[Instances, Instances]:
    """The Data Science Bowl's score of the objects with at least the given score.

    Raises:
        ConfigError: true objects of an image overlap, which the score does not know.
    """
    for record in index.records:
        _check_apart(record)

    def found(prediction: Instances) -> list[RLE]:
        assert prediction.scores is not None
        return instance_rles(prediction[prediction.scores >= score_threshold])

    scorer: Scorer[Instances, Instances] = Scorer(DsbEvaluator(), found, instance_rles)
    return TruthEvaluator({"dsb": scorer}, _Truth(index.records, lambda objects: objects))


def _check_apart(record: Record) -> None:
    codes = instance_rles(instances_of(record, with_masks=True))
    if not codes or rle.area(rle.merge(codes)) == sum(map(rle.area, codes)):
        return
    for i in range(1, len(codes)):
        if rle.area(rle.merge([rle.merge(codes[:i]), codes[i]], intersect=True)):
            raise ConfigError(
                f"{record.path}: annotation {record.annotation_ids[i]} overlaps another one, and "
                "the Bowl's score is for objects that do not: give each pixel to one object (as "
                "masks of instance_png do), or score with tools/eval_coco.py"
            )


def map_scorers(
    model: SemanticConfig,
    class_names: Sequence[str],
    kinds: Sequence[str],
    relabel: Relabel | None = None,
) -> MapScorers:
    """See `build_map_evaluator`."""
    scorers: MapScorers = {}
    for kind in kinds:
        if kind == "semantic":
            scorers[kind] = _semantic(model, class_names, relabel or _itself)
            continue
        if len(class_names) != 1:
            raise ConfigError(
                f"evaluation.maps asks for {kind!r}, which scores the foreground of one class; "
                f"the data has {len(class_names)}"
            )
        if kind == "em":
            scorers[kind] = Scorer(EmEvaluator(), lambda p: 1 - _foreground(p), _is_foreground)
        else:
            scorers[kind] = Scorer(ThresholdEvaluator(), _foreground, _is_foreground)
    return scorers


def _semantic(
    model: SemanticConfig, class_names: Sequence[str], relabel: Relabel
) -> Scorer[SemanticMap, SemanticMap]:
    names = model.map_names(class_names)
    evaluator = (
        MultiLabelEvaluator(names) if model.classes == "multilabel" else SemanticEvaluator(names)
    )
    return Scorer(evaluator, lambda p: relabel(p).labels, lambda t: t.labels)


def build_target(config: Config, num_classes: int) -> SemanticTarget:
    """What makes the maps that the network of a configuration learns.

    Raises:
        ConfigError: kind "border" for more than one class, or a setting that the data lacks a
            label for.
    """
    assert isinstance(config.model, SemanticConfig)
    section, weights = config.data.targets, config.data.targets.weight_map
    try:
        return SemanticTarget(
            num_classes,
            config.model.classes,
            background=config.model.background,
            border_width=section.border_width,
            separate_touching=section.separate_touching,
            cells=section.cells,
            cell_labels=section.cell_labels,
            weights=None if weights is None else UNetWeights(**weights.model_dump()),
        )
    except ValueError as error:
        raise ConfigError(f"data.targets and model.classes: {error}") from None


class _Truth:
    """The truth of an image by its id, made when it is asked for."""

    def __init__(self, records: Records, make: Callable[[Instances], Any]) -> None:
        self._records = records
        self._make = make

    def __call__(self, image_id: int) -> Any:
        record = self._records[self._records.position(image_id)]
        return self._make(instances_of(record, with_masks=True))


def _itself(semantic: SemanticMap) -> SemanticMap:
    return semantic


def _foreground(prediction: SemanticMap) -> npt.NDArray[np.float32]:
    """The probability of the one class, or of any part of its objects."""
    assert prediction.scores is not None
    scores = prediction.scores[0] if prediction.is_multi_label else 1 - prediction.scores[0]
    # Rounding may leave the sum of probabilities a hair outside.
    return np.asarray(scores.clamp(0, 1), dtype=np.float32)


def _is_foreground(truth: SemanticMap) -> npt.NDArray[np.uint8]:
    """1 where the one class is, `IGNORE` where that is unknown."""
    labels = truth.labels[0] if truth.is_multi_label else truth.labels
    return np.where(labels == IGNORE, IGNORE, labels > 0).astype(np.uint8)
