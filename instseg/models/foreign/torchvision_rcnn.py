"""Torchvision's detection checkpoints in instseg's names.

Covers ``fasterrcnn_resnet50_fpn``, ``fasterrcnn_resnet50_fpn_v2``, ``maskrcnn_resnet50_fpn`` and
``maskrcnn_resnet50_fpn_v2``, in the layout of their modules and in that of the published files of
the first versions, which are older.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Applied in order; the first pattern that matches a key's start renames it.
_RENAMES = [
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(\d+)\.", r"neck.lateral.\1.\2."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.", r"neck.lateral.\1.0."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(\d+)\.", r"neck.output.\1.\2."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.", r"neck.output.\1.0."),
    (r"rpn\.head\.conv\.(\d+)\.0\.", r"rpn.head.conv.\1.0."),
    (r"rpn\.head\.conv\.", "rpn.head.conv.0.0."),
    (r"rpn\.head\.cls_logits\.", "rpn.head.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.head.offsets."),
    (r"roi_heads\.box_head\.(fc6|fc7)\.", r"box_head.body.\1."),
    (r"roi_heads\.box_head\.([0-3])\.(\d+)\.", r"box_head.body.convs.\1.\2."),
    (r"roi_heads\.box_head\.5\.", "box_head.body.fc."),
    (r"roi_heads\.box_predictor\.", "box_head.predictor."),
    (r"roi_heads\.mask_head\.(\d+)\.", r"mask_head.body.\1."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.predictor.upsample."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.predictor.logits."),
]


def convert_torchvision_state_dict(
    state_dict: Mapping[str, Tensor], *, frozen_eps: float | None = None
) -> dict[str, Tensor]:
    """Rename the keys of a torchvision detection model; shapes stay as they are.

    Args:
        state_dict: of one of the four models.
        frozen_eps: the epsilon that the checkpoint's frozen batch norm was trained with, where it
            is not 1e-5. Torchvision's ``COCO_V1`` weights use 0; the difference is moved into the
            running variance, so that the outputs stay the same.

    Returns:
        A state dict for the model of the same name in `instseg.models.detection`.

    Raises:
        ValueError: a key is none of torchvision's.
    """
    converted = {_rename(key): value for key, value in state_dict.items()}
    for key, value in list(converted.items()):
        if key.endswith("running_var"):
            counter = key.replace("running_var", "num_batches_tracked")
            converted.setdefault(counter, torch.tensor(0))
            if frozen_eps is not None and key.startswith("backbone."):
                converted[key] = value + (frozen_eps - 1e-5)
    return converted


def _rename(key: str) -> str:
    if old := re.match(r"roi_heads\.mask_head\.mask_fcn(\d)\.", key):
        return f"mask_head.body.{int(old[1]) - 1}.0." + key[old.end() :]
    for pattern, replacement in _RENAMES:
        if match := re.match(pattern, key):
            return match.expand(replacement) + key[match.end() :]
    raise ValueError(
        f"the key {key!r} is not of torchvision's Faster R-CNN or Mask R-CNN with ResNet-50-FPN"
    )


def select_classes(state_dict: Mapping[str, Tensor], keep: Sequence[int]) -> dict[str, Tensor]:
    """Keep some classes of a converted R-CNN, in the order given.

    Args:
        state_dict: in instseg's names.
        keep: class indices from 0, without the background, which always stays.

    Raises:
        ValueError: an index is none of the classes'.
    """
    count = len(state_dict["box_head.predictor.cls_score.bias"]) - 1
    if wrong := [k for k in keep if not 0 <= k < count]:
        raise ValueError(f"there are {count} classes, no class index {wrong[0]}")
    rows = torch.tensor([0, *(k + 1 for k in keep)])
    selected = dict(state_dict)
    for name in ("box_head.predictor.cls_score", "mask_head.predictor.logits"):
        for part in ("weight", "bias"):
            if f"{name}.{part}" in selected:
                selected[f"{name}.{part}"] = selected[f"{name}.{part}"][rows]
    for part in ("weight", "bias"):
        boxes = selected[f"box_head.predictor.bbox_pred.{part}"]
        selected[f"box_head.predictor.bbox_pred.{part}"] = boxes.unflatten(0, (-1, 4))[
            rows
        ].flatten(0, 1)
    return selected
