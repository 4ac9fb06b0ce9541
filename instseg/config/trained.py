"""Weights files that can be used without a configuration: what they carry, and how to load them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from pydantic import JsonValue
from torch import Tensor

from instseg.config.build_data import build_transforms
from instseg.config.build_model import Model, build_model
from instseg.config.loader import dump_config, parse_config
from instseg.config.schema import Config, InferenceConfig, InitConfig
from instseg.config.schema_semantic import SemanticConfig
from instseg.data.image_io import read_image
from instseg.data.transforms import Compose
from instseg.engine.errors import CheckpointError
from instseg.engine.weights import METADATA_KEY, load_weights

_logger = logging.getLogger(__name__)


@dataclass
class TrainedModel:
    """A model in evaluation mode, with all that is needed to use it.

    Args:
        model: on the CPU.
        transforms: what is done to an image before the model sees it.
        categories: ``id`` and ``name`` of each label, in order.
        config: what the model and its transforms were built from.
    """

    model: Model
    transforms: Compose
    categories: list[dict[str, Any]]
    config: InferenceConfig

    @property
    def class_names(self) -> list[str]:
        """The class names, in label order."""
        return [c["name"] for c in self.categories]

    @property
    def image_channels(self) -> int:
        """Channels of the images that the model takes: 3 is RGB, 1 gray."""
        return self.config.model.image_channels

    @property
    def image_bits(self) -> int:
        """Bits of their values that the model sees, 8 or 16: see `read_image`."""
        return self.config.model.image_bits

    @property
    def map_names(self) -> list[str]:
        """The classes of the channels of its class maps, in order; none where it makes no maps."""
        model = self.config.model
        return model.map_names(self.class_names) if isinstance(model, SemanticConfig) else []

    @property
    def map_background(self) -> bool:
        """Whether its class maps have a background, which then is class 0."""
        model = self.config.model
        return isinstance(model, SemanticConfig) and (
            model.classes == "border" or (model.classes == "multiclass" and model.background)
        )

    def read_image(self, path: str | Path) -> npt.NDArray[Any]:
        """An image as the model takes it, ``[H, W, C]``: uint8, or uint16 of a 16-bit file.

        Raises:
            ImageError: it cannot be read, or has other channels; see `instseg.data.image_io`.
        """
        kept = self.image_bits == 16
        return read_image(path, channels=self.image_channels, bits16="keep" if kept else "scale")


def describe_weights(
    config: InferenceConfig, categories: Sequence[Mapping[str, Any]]
) -> dict[str, JsonValue]:
    """What a weights file says of itself: how to build the model, and its classes."""
    classes: list[JsonValue] = [{"id": c["id"], "name": c["name"]} for c in categories]
    return {"inference": dump_config(config), "categories": classes}


def inference_config(config: Config) -> InferenceConfig:
    """The part of a training's configuration that using its model needs."""
    return InferenceConfig(model=config.model, transforms=config.data.val_transforms)


def load_trained(path: Path, config: InferenceConfig | None = None) -> TrainedModel:
    """Rebuild the model that a weights file was saved from.

    Args:
        path: a file that `tools/train_net.py` or `tools/convert_weights.py` wrote.
        config: build this in place of what the file says.

    Raises:
        CheckpointError: the file is unreadable, does not say what it is, or its weights do not fit
            the model; the message names file, key and both shapes.
        ConfigError: the configuration in the file is not valid.
    """
    tensors, stored, categories = _read(path)
    config = config or parse_config(stored, InferenceConfig, source=str(path))
    names = [category["name"] for category in categories]
    build = partial(
        build_model, config.model, num_classes=len(names), class_names=names, load_backbone=False
    )
    with torch.device("meta"):  # the shapes alone: a file may describe a model of any size
        shapes = build()
    check_state_dict(shapes.state_dict(), tensors, path)
    model = build()
    model.load_state_dict(tensors)
    return TrainedModel(model.eval(), build_transforms(config.transforms), categories, config)


def load_initial(model: Model, init: InitConfig, class_names: Sequence[str]) -> None:
    """Start a training from a weights file.

    Args:
        model: gets the weights.
        init: which file, and whether its class-specific layers are taken too.
        class_names: the classes of the training, in label order.

    Raises:
        CheckpointError: the weights do not fit; or their classes are others and ``init.heads`` asks
            for their layers; or their batch norm is folded away.
    """
    tensors, _, categories = _read(init.weights)
    names = [c["name"] for c in categories]
    if init.heads and names != list(class_names):
        raise CheckpointError(
            f"{init.weights} was trained for {len(names)} classes ({_few(names)}), the data has "
            f"{len(class_names)} ({_few(class_names)}): set train.init_from.heads=false to train "
            "new class layers"
        )
    if _has_folded_batch_norm(tensors):
        raise CheckpointError(
            f"{init.weights}: its batch norm is folded into the convolutions, which is good for "
            "predictions, but trained it would be another network: convert it again, with --images"
        )
    own = model.state_dict()
    if not init.heads:
        dropped = [key for key in own if _is_class_layer(key, model)]
        _logger.info("starting from %s, with new weights for %s", init.weights, ", ".join(dropped))
        tensors = {k: v for k, v in tensors.items() if not _is_class_layer(k, model)}
        tensors |= {key: own[key] for key in dropped}
    check_state_dict(own, tensors, init.weights)
    model.load_state_dict(tensors)


def _is_class_layer(key: str, model: Model) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in model.class_layers)


def _has_folded_batch_norm(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all are the identity that `load_yolox_onnx` leaves; a new model's variance is 1."""
    means = [v for k, v in tensors.items() if k.endswith("running_mean")]
    variances = [v for k, v in tensors.items() if k.endswith("running_var")]
    return not any(m.any() for m in means) and any((v != 1).any() for v in variances)


def _read(path: Path) -> tuple[dict[str, Tensor], str, list[dict[str, Any]]]:
    """(tensors, stored configuration, categories) of a weights file."""
    tensors, metadata = load_weights(path)
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path}: this file carries no configuration and class names. Of a run, use "
            "best.safetensors or final.safetensors (last and previous are for --resume); convert "
            "foreign weights with tools/convert_weights.py"
        )
    try:
        content = json.loads(metadata[METADATA_KEY])
        categories = [{"id": int(c["id"]), "name": str(c["name"])} for c in content["categories"]]
        return tensors, str(content["inference"]), categories
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its metadata {METADATA_KEY!r} is not what instseg writes ({error!r})"
        ) from None


def check_state_dict(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: Path | str
) -> None:
    """Compare a model's state dict with that of a file.

    Raises:
        CheckpointError: they differ in keys or shapes; the message names ``source``, keys, shapes.
    """
    problems = [
        f"{key} is {list(given[key].shape)} in the file and {list(own[key].shape)} in the model"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    if any(problem.startswith("box_head.predictor.cls_score") for problem in problems):
        problems.insert(0, "it is for another number of classes")
    problems += [f"{key} is missing in the file" for key in own if key not in given]
    problems += [f"{key} is not in the model" for key in given if key not in own]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems[:5])}{more}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
