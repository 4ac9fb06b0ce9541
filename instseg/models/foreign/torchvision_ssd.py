"""Torchvision's ``ssd300_vgg16`` and ``ssdlite320_mobilenet_v3_large`` in instseg's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_HEAD = [
    (r"head\.classification_head\.module_list\.(\d)\.", r"head.predictor.logits.\1."),
    (r"head\.regression_head\.module_list\.(\d)\.", r"head.predictor.offsets.\1."),
]
# Torchvision cuts its VGG at the fourth pool, layer 23, and its MobileNet inside of block 13.
_VGG_CUT, _MOBILENET_CUT = 23, 13


def convert_torchvision_ssd_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of one of the two models; shapes and values stay as they are.

    Returns:
        A state dict for the model of the same name in `instseg.models.detection.ssd`.

    Raises:
        ValueError: a key is none of torchvision's.
    """
    rename = _rename_vgg if "backbone.scale_weight" in state_dict else _rename_mobilenet
    return {_rename_head(key) or rename(key): value for key, value in state_dict.items()}


def _rename_head(key: str) -> str | None:
    for pattern, replacement in _HEAD:
        if match := re.match(pattern, key):
            return match.expand(replacement) + key[match.end() :]
    return None


def _rename_vgg(key: str) -> str:
    if key == "backbone.scale_weight":
        return "neck.norm.scale"
    if re.match(r"backbone\.features\.\d+\.", key):
        return key
    if match := re.match(r"backbone\.extra\.0\.7\.([13])\.", key):
        return f"backbone.{'fc6' if match[1] == '1' else 'fc7'}." + key[match.end() :]
    if match := re.match(r"backbone\.extra\.0\.([0-6])\.", key):
        return f"backbone.features.{_VGG_CUT + int(match[1])}." + key[match.end() :]
    if match := re.match(r"backbone\.extra\.([1-4])\.", key):
        return f"neck.layers.{int(match[1]) - 1}." + key[match.end() :]
    raise _not_torchvisions(key)


def _rename_mobilenet(key: str) -> str:
    if match := re.match(rf"backbone\.features\.0\.{_MOBILENET_CUT}\.", key):
        return f"backbone.features.{_MOBILENET_CUT}.block.0." + key[match.end() :]
    if match := re.match(r"backbone\.features\.0\.(\d+)\.", key):
        return f"backbone.features.{match[1]}." + key[match.end() :]
    if match := re.match(r"backbone\.features\.1\.0\.", key):
        return f"backbone.features.{_MOBILENET_CUT}.block." + key[match.end() :]
    if match := re.match(r"backbone\.features\.1\.(\d+)\.", key):
        return f"backbone.features.{_MOBILENET_CUT + int(match[1])}." + key[match.end() :]
    if match := re.match(r"backbone\.extra\.", key):
        return "neck.layers." + key[match.end() :]
    raise _not_torchvisions(key)


def _not_torchvisions(key: str) -> ValueError:
    return ValueError(
        f"the key {key!r} is not of torchvision's ssd300_vgg16 or ssdlite320_mobilenet_v3_large"
    )


def select_classes(state_dict: Mapping[str, Tensor], keep: Sequence[int]) -> dict[str, Tensor]:
    """Keep some classes of an SSD or SSDlite, in the order given.

    Args:
        state_dict: in instseg's names.
        keep: class indices from 0, without the background, which always stays.

    Raises:
        ValueError: an index is none of the classes'.
    """
    selected = dict(state_dict)
    rows = torch.tensor([0, *(k + 1 for k in keep)])
    # The last layer of each map's predictor; before it SSDlite has a depthwise convolution.
    for key in state_dict:
        if match := re.fullmatch(r"head\.predictor\.logits\.(\d+)\.(1\.)?(weight|bias)", key):
            offsets = state_dict[f"head.predictor.offsets.{match[1]}.{match[2] or ''}bias"]
            by_class = state_dict[key].unflatten(0, (len(offsets) // 4, -1))
            count = by_class.shape[1] - 1
            if wrong := [k for k in keep if not 0 <= k < count]:
                raise ValueError(f"there are {count} classes, no class index {wrong[0]}")
            selected[key] = by_class[:, rows].flatten(0, 1)
    return selected
