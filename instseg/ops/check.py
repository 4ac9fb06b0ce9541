"""Checks of arguments that the ops share: what is wrong is named, with its value."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def feature_map(name: str, value: Tensor) -> None:
    """``[B, C, H, W]`` of a floating dtype, with at least one pixel."""
    if value.ndim != 4:
        raise ValueError(f"{name} must be [B, C, H, W], got {list(value.shape)}")
    if value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(f"{name} must have at least one pixel, got {list(value.shape)}")
    floating(name, value)


def floating(name: str, value: Tensor) -> None:
    """One of the four floating dtypes."""
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")


def pyramid(features: Sequence[Tensor], step: Sequence[int]) -> None:
    """Maps that share batch, channels, dtype and device, one for each stride."""
    strides(step)
    if len(features) != len(step):
        raise ValueError(
            f"features must be one map for each of the strides {list(step)}, got {len(features)}"
        )
    first = features[0]
    for i, level in enumerate(features):
        feature_map(f"features[{i}]", level)
        if level.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"features[{i}] must have the batch and channels of features[0], "
                f"{list(first.shape[:2])}, got {list(level.shape[:2])}"
            )
        if level.dtype != first.dtype:
            raise TypeError(
                f"features[{i}] must be {first.dtype} as features[0], got {level.dtype}"
            )
        same_device(f"features[{i}]", level, "features[0]", first)


def strides(value: Sequence[int]) -> None:
    """Consecutive powers of two."""
    if len(value) == 0 or any(
        s != value[0] << i or s < 1 or s & (s - 1) for i, s in enumerate(value)
    ):
        raise ValueError(f"strides must be consecutive powers of two, got {list(value)}")


def rois(name: str, value: Tensor | list[Tensor], features: Tensor) -> Tensor:
    """Boxes in either form as rows ``[K, 5]``, float64 for float64 features and else float32."""
    if isinstance(value, Tensor):
        if value.ndim != 2 or value.shape[1] != 5:
            raise ValueError(f"{name} must be [K, 5] or a list of [K, 4], got {list(value.shape)}")
        stacked = value
    else:
        stacked = _stack(name, value, features)
    floating(name, stacked)
    same_device(name, stacked, "the feature map", features)
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    return stacked.detach().to(wide)


def _stack(name: str, value: list[Tensor], features: Tensor) -> Tensor:
    if len(value) != features.shape[0] or any(b.ndim != 2 or b.shape[1] != 4 for b in value):
        shapes = [list(b.shape) for b in value]
        raise ValueError(f"{name} must be {features.shape[0]} tensors [K, 4], got {shapes}")
    if not value:
        return features.new_zeros((0, 5), dtype=torch.float32)
    # Batch indices in the dtype of the boxes: half precision could not hold large ones.
    wide = [b if b.dtype == torch.float64 else b.float() for b in value]
    index = torch.cat([b.new_full((b.shape[0], 1), float(i)) for i, b in enumerate(wide)])
    return torch.cat([index, torch.cat(wide)], dim=1)


def output_size(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width), both at least 1."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, (int, torch.SymInt)) for side in pair):
        raise TypeError(f"{name} must be a whole number or two, got {value!r}")
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return pair[0], pair[1]


def positive(name: str, value: float) -> None:
    """A finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def fraction(name: str, value: float) -> None:
    """A number in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def boxes(name: str, value: Tensor) -> None:
    """``[N, 4]`` of a floating dtype."""
    if value.ndim != 2 or value.shape[1] != 4:
        raise ValueError(f"{name} must be [N, 4], got {list(value.shape)}")
    floating(name, value)


def one_per_box(name: str, value: Tensor, boxes: Tensor) -> None:
    """``[N]``, on the device of the boxes."""
    if value.shape != boxes.shape[:1]:
        raise ValueError(f"{name} must be [{boxes.shape[0]}], got {list(value.shape)}")
    same_device(name, value, "boxes", boxes)


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {value.device}"
        )


# --- values inside tensors: looked at where that costs no synchronisation ------------------------


def looks_inside(value: Tensor) -> bool:
    """Whether values are checked: always on a CPU, on a GPU under ``INSTSEG_DEBUG=1``."""
    return value.device.type == "cpu" or os.environ.get("INSTSEG_DEBUG", "0") not in ("", "0")


def finite(name: str, value: Tensor) -> None:
    """No NaN and no infinity."""
    if not looks_inside(value):
        return
    good = value.isfinite()
    if not good.all():
        row = (
            int((~good).flatten(1).any(dim=1).nonzero()[0])
            if value.ndim > 1
            else int((~good).nonzero()[0])
        )
        raise ValueError(f"{name} must be finite, row {row} is {value[row].tolist()}")


def roi_values(rois: Tensor, batch: int) -> None:
    """Finite boxes, and batch indices that exist."""
    if not looks_inside(rois) or rois.shape[0] == 0:
        return
    finite("boxes", rois)
    index = rois[:, 0]
    wrong = (index < 0) | (index >= batch) | (index != index.floor())
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes must have a batch index in 0..{batch - 1}, row {row} has {index[row].item():g}"
        )
