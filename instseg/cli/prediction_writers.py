"""What `instseg predict` writes: objects, class maps or pictures, each with their drawings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from instseg.cli.prediction_files import with_ending
from instseg.config.schema_semantic import Pix2PixConfig, SemanticConfig
from instseg.config.trained import TrainedModel
from instseg.evaluation.results import instances_to_results, write_results
from instseg.inference.predictor import Prediction
from instseg.structures import Instances, SemanticMap
from instseg.structures.image_target import ImageTarget
from instseg.visualization.draw import Image, draw_instances, save_png
from instseg.visualization.draw_map import displayable, draw_map


class Writer(ABC):
    """Writes what a kind of model predicts.

    Attributes:
        endings: what the files of an image have after its stem.
        listing: more keys of images.json.
    """

    endings: Sequence[str]
    listing: dict[str, Any]

    @abstractmethod
    def add(
        self, number: int, image: npt.NDArray[Any], found: Prediction, stem: Path
    ) -> dict[str, Any]:
        """Write the files of image ``number`` and return more keys of its entry in images.json."""

    @abstractmethod
    def finish(self) -> str:
        """Write what belongs to all images and say what was found."""


def make_writer(trained: TrainedModel, folder: Path, score_threshold: float) -> Writer:
    """The writer for what a model predicts; ``score_threshold`` is that of objects drawn."""
    if isinstance(trained.config.model, Pix2PixConfig):
        return _Pictures()
    if isinstance(trained.config.model, SemanticConfig) and trained.config.model.instances is None:
        return _Maps(trained, overlap=trained.config.model.classes == "multilabel")
    return _Objects(trained, folder, score_threshold)


class _Objects(Writer):
    """A drawing for each image, and all objects in results.json."""

    endings = (".png",)

    def __init__(self, trained: TrainedModel, folder: Path, score_threshold: float) -> None:
        self.listing = {"categories": trained.categories}
        self._names = trained.class_names
        self._category_ids = [c["id"] for c in trained.categories]
        self._folder = folder
        self._score_threshold = score_threshold
        self._records: list[dict[str, Any]] = []

    def add(
        self, number: int, image: npt.NDArray[Any], found: Prediction, stem: Path
    ) -> dict[str, Any]:
        assert isinstance(found, Instances)
        self._records += instances_to_results(number, found, self._category_ids)
        shown = _displayable(image)
        drawn = draw_instances(shown, found, self._names, score_threshold=self._score_threshold)
        save_png(drawn, with_ending(stem, ".png"))
        return {}

    def finish(self) -> str:
        write_results(self._records, self._folder / "results.json")
        return f"{len(self._records)} detections"


class _Maps(Writer):
    """A drawing and the classes of the pixels for each image."""

    def __init__(self, trained: TrainedModel, *, overlap: bool) -> None:
        self._names, self._background = trained.map_names, trained.map_background
        self._overlap = overlap
        self._labels = ["_labels.png"]
        self.listing = {"categories": trained.categories}
        if overlap:
            self._labels = [f"_labels_{k}.png" for k in range(len(self._names))]
        else:
            self.listing["values"] = {name: value for value, name in enumerate(self._names)}
        self.endings = (".png", *self._labels)
        self._written = 0

    def add(
        self, number: int, image: npt.NDArray[Any], found: Prediction, stem: Path
    ) -> dict[str, Any]:
        assert isinstance(found, SemanticMap)
        drawn = draw_map(_displayable(image), found, background=self._background)
        save_png(drawn, with_ending(stem, ".png"))
        labels = found.labels.numpy()
        files = [with_ending(stem, ending) for ending in self._labels]
        for file, values in zip(files, labels if self._overlap else labels[None], strict=True):
            _save_gray(values, file)
        self._written += 1
        if not self._overlap:
            return {"labels": files[0].name}
        return {"labels": {n: file.name for n, file in zip(self._names, files, strict=True)}}

    def finish(self) -> str:
        return f"{self._written} class maps"


class _Pictures(Writer):
    """The picture that each image becomes."""

    endings = (".png",)

    def __init__(self) -> None:
        self.listing = {}
        self._written = 0

    def add(
        self, number: int, image: npt.NDArray[Any], found: Prediction, stem: Path
    ) -> dict[str, Any]:
        assert isinstance(found, ImageTarget)
        save_png(displayable(found.image), with_ending(stem, ".png"))
        self._written += 1
        return {}

    def finish(self) -> str:
        return f"{self._written} pictures made"


def _displayable(image: npt.NDArray[Any]) -> Image:
    return displayable(torch.from_numpy(image).permute(2, 0, 1))


def _save_gray(values: npt.NDArray[np.uint8], path: Path) -> None:
    _, data = cv2.imencode(".png", values)
    path.write_bytes(data.tobytes())
