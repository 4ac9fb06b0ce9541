"""From a configuration to the data and the scoring of a run, for each kind of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instseg.config.build import (
    build_evaluator,
    build_train_loader,
    build_val_loader,
    learns_masks,
    read_index,
    read_val_index,
)
from instseg.config.build_data import read_pairs
from instseg.config.build_loaders import build_train_pair_loader, build_val_pair_loader
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_semantic import Pix2PixConfig
from instseg.data.image_pairs import ImagePair
from instseg.data.index import CocoIndex
from instseg.data.loader import DetectionLoader
from instseg.engine.protocols import Evaluator
from instseg.evaluation.images import SSIM_WINDOW, ImageEvaluator
from instseg.evaluation.with_truth import Scorer, TruthEvaluator
from instseg.structures.image_target import ImageTarget


@dataclass(frozen=True)
class Parts:
    """What a training needs besides its model.

    Args:
        train_loader: shuffled, augmented batches.
        val_loader: every validation image once.
        evaluator: scores the model on these.
        categories: ``id`` and ``name`` of each class, in label order; none for image to image.
        summary: how much of what there is.
    """

    train_loader: DetectionLoader
    val_loader: DetectionLoader
    evaluator: Evaluator[Any]
    categories: Sequence[Mapping[str, Any]]
    summary: str


def build_parts(config: Config) -> Parts:
    """Read the data of a configuration.

    Raises:
        ConfigError, AnnotationError, FormatError, ImageError, OSError: see their messages.
    """
    if isinstance(config.model, Pix2PixConfig):
        return _image_parts(config)
    train_index = read_index(config.data.train, need_masks=learns_masks(config))
    val_index = read_val_index(config)
    if config.data.on_defect == "raise":
        _refuse_defects("data.train", train_index)
        _refuse_defects("data.val", val_index)
    return Parts(
        build_train_loader(config, train_index),
        build_val_loader(config, val_index),
        build_evaluator(config, val_index, train_index.class_names),
        train_index.categories,
        f"{len(train_index.records)} training images, {len(val_index.records)} validation images, "
        f"{len(train_index.categories)} classes",
    )


def _refuse_defects(key: str, index: CocoIndex) -> None:
    if not index.is_whole:
        raise ConfigError(
            f"{key}: {index.summary()}. data.on_defect is raise: mend them, or train without them "
            "by data.on_defect=skip"
        )


def build_pair_evaluation(
    config: Config,
) -> tuple[DetectionLoader, TruthEvaluator[ImageTarget, ImageTarget]]:
    """The validation pairs of an image-to-image model, and what scores it on them.

    Raises:
        ConfigError, FormatError, ImageError: the data is for other models, cannot be read, or has
            pictures that are too small to be scored.
    """
    val = read_pairs(config.data.val)
    for pair in val:
        if min(pair.size) < SSIM_WINDOW:
            raise ConfigError(
                f"{pair.target_path}: pictures of {pair.size[0]}x{pair.size[1]} pixels are below "
                f"SSIM's window of {SSIM_WINDOW}x{SSIM_WINDOW}: leave them out of data.val, or "
                "enlarge them"
            )
    scorer: Scorer[ImageTarget, ImageTarget] = Scorer(ImageEvaluator(), _itself, _itself)
    return build_val_pair_loader(config, val), TruthEvaluator({"image": scorer}, _Targets(val))


def _image_parts(config: Config) -> Parts:
    train = read_pairs(config.data.train)
    val_loader, evaluator = build_pair_evaluation(config)
    summary = f"{len(train)} training pairs of pictures"
    return Parts(build_train_pair_loader(config, train), val_loader, evaluator, [], summary)


class _Targets:
    """The target of a pair by its id, read when it is asked for."""

    def __init__(self, pairs: Sequence[ImagePair]) -> None:
        self._pairs = {pair.image_id: pair for pair in pairs}

    def __call__(self, image_id: int) -> ImageTarget:
        return ImageTarget(self._pairs[image_id].read()[1])


def _itself(picture: ImageTarget) -> ImageTarget:
    return picture
