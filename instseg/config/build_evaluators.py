"""From a configuration to what scores its model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from instseg.config.build_data import read_index
from instseg.config.build_maps import build_map_evaluator, map_scorers
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_semantic import Pix2PixConfig, SemanticConfig
from instseg.data.index import CocoIndex
from instseg.engine.protocols import Evaluator
from instseg.evaluation.coco import METRIC_NAMES, CocoEvaluator, shapes_of
from instseg.evaluation.images import ImageEvaluator
from instseg.evaluation.params import CocoParams
from instseg.evaluation.scores import BootstrapOptions

_logger = logging.getLogger(__name__)


def build_evaluator(config: Config, index: CocoIndex, class_names: Sequence[str]) -> Evaluator[Any]:
    """What scores the objects or the class maps that the model predicts, while it is trained.

    Raises:
        ConfigError: the model's classes do not fit those of the data.
    """
    if predicts_maps(config):
        return build_map_evaluator(config, index, class_names, config.evaluation.maps)
    return build_coco_evaluator(config, index, class_names)


_NO_MERITS = ("image/l1", "em/v_rand_threshold", "em/v_info_threshold")
"""Figures that do not rise with a better model, and so cannot choose one."""


def score_names(config: Config) -> list[str]:
    """``kind/figure`` of the scores that can choose the best model, the default first."""
    return [name for name in _score_names(config) if name not in _NO_MERITS]


def _score_names(config: Config) -> list[str]:
    if isinstance(config.model, Pix2PixConfig):
        return [f"image/{name}" for name in ("ssim", *ImageEvaluator().compute().stats)]
    if isinstance(config.model, SemanticConfig) and predicts_maps(config):
        scorers = map_scorers(config.model, ["class"], config.evaluation.maps)
        figures = [
            f"{kind}/{name}"
            for kind, scorer in scorers.items()
            for name in scorer.evaluator.compute().stats
        ]
        return sorted(figures, key=lambda name: name != "semantic/jaccard")
    kinds = iou_types(config)
    return [f"{kind}/{name}" for kind in reversed(kinds) for name in METRIC_NAMES]


def predicts_maps(config: Config) -> bool:
    """Whether the model predicts class maps, not objects."""
    return isinstance(config.model, SemanticConfig) and config.model.instances is None


def build_coco_evaluator(
    config: Config,
    index: CocoIndex,
    class_names: Sequence[str],
    *,
    params: CocoParams | None = None,
    intervals: BootstrapOptions | None = None,
    keep_results: bool = False,
) -> CocoEvaluator:
    """An evaluator of the model's classes on the ground truth of ``index``.

    Classes of the ground truth that the model does not know count as missed, with a warning. The
    other arguments are those of `CocoEvaluator`.

    Raises:
        ConfigError: the data set lacks one of the classes.
    """
    by_name = {c["name"]: c["id"] for c in index.categories}
    if missing := [name for name in class_names if name not in by_name]:
        raise ConfigError(
            f"the model's classes {', '.join(missing)} are not in the validation data, whose "
            f"classes are {', '.join(by_name)}"
        )
    if unknown := [name for name in by_name if name not in class_names]:
        _logger.warning("the model does not know the classes %s", ", ".join(unknown))
    return CocoEvaluator(
        index.coco,
        [by_name[name] for name in class_names],
        iou_types=iou_types(config),
        params=params,
        intervals=intervals,
        backend=config.evaluation.backend,
        keep_results=keep_results,
    )


def iou_types(config: Config) -> list[str]:
    """What is scored: the configuration's choice, or all that the model predicts.

    Raises:
        ConfigError: masks are asked for and the model has none.
    """
    chosen = config.evaluation.iou_types
    if chosen is None:
        return ["bbox", "segm"] if config.model.predicts_masks else ["bbox"]
    if "segm" in shapes_of(chosen) and not config.model.predicts_masks:
        asked = ", ".join(chosen)
        raise ConfigError(f"evaluation.iou_types asks for {asked}, but the model predicts no masks")
    return list(chosen)


def read_val_index(config: Config) -> CocoIndex:
    """The validation data, with masks where they are scored."""
    need_masks = predicts_maps(config) or "segm" in shapes_of(iou_types(config))
    return read_index(config.data.val, need_masks=need_masks)
