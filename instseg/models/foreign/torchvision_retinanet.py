"""Torchvision's RetinaNet checkpoints in instseg's names.

Covers ``retinanet_resnet50_fpn`` and ``retinanet_resnet50_fpn_v2``, in the layout of their modules
and in that of the published file of the first version, which is older.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from instseg.models.foreign.torchvision_rcnn import convert_torchvision_state_dict

# These are named alike in all of torchvision's detectors with a ResNet and FPN.
_SHARED = re.compile(r"backbone\.(body\.|fpn\.(inner|layer)_blocks\.\d+\.)")

_RENAMES = [
    (r"backbone\.fpn\.extra_blocks\.(p6|p7)\.", r"neck.\1."),
    (r"head\.(classification|regression)_head\.conv\.(\d+)\.(\d+)\.", r"head.convs.\1.\2.\3."),
    (r"head\.classification_head\.cls_logits\.", "head.convs.logits."),
    (r"head\.regression_head\.bbox_reg\.", "head.convs.offsets."),
]


def convert_retinanet_state_dict(
    state_dict: Mapping[str, Tensor], *, frozen_eps: float | None = None
) -> dict[str, Tensor]:
    """Rename the keys of a torchvision RetinaNet; shapes stay as they are.

    Args:
        state_dict: of one of the two models. Torchvision's ``num_classes`` may count a background;
            its column is a class like the others here (see `select_retinanet_classes`).
        frozen_eps: see `convert_torchvision_state_dict`; 0 for torchvision's first ``COCO_V1``.

    Returns:
        A state dict for the model of the same name in `instseg.models.detection.retinanet`.

    Raises:
        ValueError: a key is none of torchvision's.
    """
    shared = {key: value for key, value in state_dict.items() if _SHARED.match(key)}
    converted = convert_torchvision_state_dict(shared, frozen_eps=frozen_eps)
    for key, value in state_dict.items():
        if key not in shared:
            converted[_rename(key)] = value
    return converted


def _rename(key: str) -> str:
    # The older towers are flat: convolutions and ReLUs in turn.
    if old := re.fullmatch(r"head\.(\w+)_head\.conv\.(\d+)\.(weight|bias)", key):
        key = f"head.{old[1]}_head.conv.{int(old[2]) // 2}.0.{old[3]}"
    for pattern, replacement in _RENAMES:
        if match := re.match(pattern, key):
            return match.expand(replacement) + key[match.end() :]
    raise ValueError(f"the key {key!r} is not of torchvision's RetinaNet with ResNet-50-FPN")


def select_retinanet_classes(
    state_dict: Mapping[str, Tensor], keep: Sequence[int]
) -> dict[str, Tensor]:
    """Keep some classes of a converted RetinaNet, in the order given.

    Torchvision's COCO checkpoints have 91 columns, and a class's is its COCO category id: column 0
    and those of unused ids are never trained.

    Args:
        state_dict: in instseg's names.
        keep: columns from 0.

    Raises:
        ValueError: an index is none of the classes'.
    """
    num_anchors = len(state_dict["head.convs.offsets.bias"]) // 4
    count = len(state_dict["head.convs.logits.bias"]) // num_anchors
    if wrong := [k for k in keep if not 0 <= k < count]:
        raise ValueError(f"there are {count} classes, no class index {wrong[0]}")
    selected = dict(state_dict)
    for part in ("weight", "bias"):
        rows = selected[f"head.convs.logits.{part}"].unflatten(0, (num_anchors, count))
        selected[f"head.convs.logits.{part}"] = rows[:, torch.tensor(keep)].flatten(0, 1)
    return selected
