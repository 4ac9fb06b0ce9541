"""Areas, overlaps and clipping of boxes ``[N, 4]`` (x1, y1, x2, y2), continuous coordinates.

Each measure of overlap comes in two forms. `box_iou` and its variants are pairwise: ``[N, 4]``
against ``[M, 4]`` gives ``[N, M]``. Their ``_elementwise`` twins compare box i with box i:
``[N, 4]`` against ``[N, 4]`` gives ``[N]``, the diagonal of the pairwise matrix. These are two
names, not one function with a flag, so that a call shows the shape that it returns.

All are differentiable, compute in float32 for half precision (and return it, as torchvision does),
and never give NaN for boxes without area. Without a gradient, `box_iou` holds at most 3.25 arrays
of ``[N, M]`` at a time, its variants at most 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from instseg.ops import check
from instseg.structures.geometry import Size

# x1, y1, x2, y2 of some boxes, in shapes that broadcast with those of others.
_Sides = tuple[Tensor, ...]


def box_area(boxes: Tensor) -> Tensor:
    """Area ``[N]`` in square pixels; float32 for half-precision boxes ``[N, 4]``.

    Raises:
        ValueError: the boxes are not ``[N, 4]``.
        TypeError: they are not floating; both as in every function here.
    """
    check.boxes("boxes", boxes)
    return _area(_wide(boxes).unbind(-1))


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union ``[N, M]`` in [0, 1]; 0 where both boxes have no area.

    Args:
        boxes1: ``[N, 4]`` with x1 <= x2 and y1 <= y2.
        boxes2: ``[M, 4]``, likewise, on the same device.
    """
    return _iou(*_pairwise(boxes1, boxes2))


def box_iou_elementwise(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """`box_iou` of boxes ``[N, 4]`` with the same row of ``[N, 4]``: ``[N]``."""
    return _iou(*_elementwise(boxes1, boxes2))


def box_ioa(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share ``[N, M]`` of each box's own area that lies in each region (COCO's crowd overlap).

    Args:
        boxes: ``[N, 4]``; a box without area has no share, 0.
        regions: ``[M, 4]``.
    """
    a, b = _pairwise(boxes, regions)
    return _ratio(_intersection(a, b), _area(a))


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU less the share of the enclosing box that neither box covers: ``[N, M]`` in [-1, 1].

    Source: Rezatofighi et al., Generalized Intersection over Union, 2019, algorithm 1. Where even
    the enclosing box has no area the result is 0.

    Args:
        boxes1: ``[N, 4]`` with x1 <= x2 and y1 <= y2.
        boxes2: ``[M, 4]``, likewise, on the same device.
    """
    return _generalized(*_pairwise(boxes1, boxes2))


def generalized_box_iou_elementwise(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """`generalized_box_iou` of boxes ``[N, 4]`` with the same row of ``[N, 4]``: ``[N]``."""
    return _generalized(*_elementwise(boxes1, boxes2))


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU less the squared distance of the centres over the squared diagonal of the enclosing box.

    Source: Zheng et al., Distance-IoU Loss, 2020, equation 6.

    Args:
        boxes1: ``[N, 4]`` with x1 <= x2 and y1 <= y2.
        boxes2: ``[M, 4]``, likewise, on the same device.
        eps: added to the squared diagonal, in square pixels.

    Returns:
        ``[N, M]`` in [-1, 1].
    """
    a, b = _pairwise(boxes1, boxes2)
    return _distance(a, b, eps).neg_().add_(_iou(a, b))


def distance_box_iou_elementwise(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """`distance_box_iou` of boxes ``[N, 4]`` with the same row of ``[N, 4]``: ``[N]``."""
    a, b = _elementwise(boxes1, boxes2)
    return _distance(a, b, eps).neg_().add_(_iou(a, b))


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """`distance_box_iou` less a penalty for aspect ratios that differ.

    Source: Zheng et al., Distance-IoU Loss, 2020, equations 8 to 11. The penalty's weight alpha is
    a constant for the gradient, as there.

    Args:
        boxes1: ``[N, 4]`` with x1 <= x2 and y1 <= y2.
        boxes2: ``[M, 4]``, likewise, on the same device.
        eps: added to both denominators.

    Returns:
        ``[N, M]``, at most 1.
    """
    return _complete(*_pairwise(boxes1, boxes2), eps)


def complete_box_iou_elementwise(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """`complete_box_iou` of boxes ``[N, 4]`` with the same row of ``[N, 4]``: ``[N]``."""
    return _complete(*_elementwise(boxes1, boxes2), eps)


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip boxes ``[..., 4]`` to an image of ``size`` (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def large_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """``bool [N]``: both sides are at least ``min_size`` pixels."""
    check.boxes("boxes", boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides >= min_size).all(dim=1)


# --- of coordinates that broadcast. In-place steps keep few arrays alive; where a gradient is ----
# --- wanted, autograd saves what they overwrite. -------------------------------------------------


def _pairwise(boxes1: Tensor, boxes2: Tensor) -> tuple[_Sides, _Sides]:
    """Sides of shape ``[N, 1]`` and ``[1, M]``."""
    a, b = _checked(boxes1, boxes2)
    return a[:, None].unbind(-1), b[None].unbind(-1)


def _elementwise(boxes1: Tensor, boxes2: Tensor) -> tuple[_Sides, _Sides]:
    """Sides of shape ``[N]`` and ``[N]``."""
    a, b = _checked(boxes1, boxes2)
    if a.shape != b.shape:
        raise ValueError(f"boxes2 must be as many as boxes1, {a.shape[0]}, got {b.shape[0]}")
    return a.unbind(-1), b.unbind(-1)


def _checked(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    check.boxes("boxes1", boxes1)
    check.boxes("boxes2", boxes2)
    check.same_device("boxes2", boxes2, "boxes1", boxes1)
    return _wide(boxes1), _wide(boxes2)


def _wide(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def _area(box: _Sides) -> Tensor:
    return (box[2] - box[0]) * (box[3] - box[1])


def _intersection(a: _Sides, b: _Sides) -> Tensor:
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0)
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).clamp_(min=0)
    return width.mul_(height)


def _hull(a: _Sides, b: _Sides) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around two."""
    width = torch.maximum(a[2], b[2]).sub_(torch.minimum(a[0], b[0])).clamp_(min=0)
    height = torch.maximum(a[3], b[3]).sub_(torch.minimum(a[1], b[1])).clamp_(min=0)
    return width, height


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` in the place of ``part``, which must be 0 where ``whole`` is; both go."""
    # Dividing by 1 there, not by something tiny, keeps the gradient finite.
    return part.div_(whole.masked_fill_(whole <= 0, 1))


def _iou(a: _Sides, b: _Sides) -> Tensor:
    inter = _intersection(a, b)
    return _ratio(inter, (_area(a) + _area(b)).sub_(inter))


def _generalized(a: _Sides, b: _Sides) -> Tensor:
    hull = torch.mul(*_hull(a, b))
    inter = _intersection(a, b)
    union = (_area(a) + _area(b)).sub_(inter)
    bare = hull - union
    return _ratio(inter, union).sub_(_ratio(bare, hull))


def _distance(a: _Sides, b: _Sides, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull."""
    x = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    y = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    apart = x.square_().add_(y.square_())
    del y
    width, height = _hull(a, b)
    return apart.div_(width.square_().add_(height.square_()).add_(eps))


def _complete(a: _Sides, b: _Sides, eps: float) -> Tensor:
    distance = _distance(a, b, eps)
    iou = _iou(a, b)
    shape = (_angle(a) - _angle(b)).square_().mul_(4 / math.pi**2)
    with torch.no_grad():
        alpha = shape / (1 - iou).clamp_(min=0).add_(shape).add_(eps)
    return torch.addcmul(iou.sub_(distance), alpha, shape, value=-1)


def _angle(box: _Sides) -> Tensor:
    """Arc tangent of width over height, 0 for a point."""
    width, height = box[2] - box[0], box[3] - box[1]
    # The gradient of atan2 at the origin would be NaN.
    return torch.atan2(width, height.masked_fill((width == 0) & (height == 0), 1))
