"""Batch norm folded into the convolutions before it, and put back after them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Model = TypeVar("Model", bound=nn.Module)


def fold_batch_norm(model: Model) -> Model:
    """A copy for inference in which convolutions do the work of the batch norm after them.

    Folded are a convolution directly followed by batch norm in an `nn.Sequential`, and one that
    shares its name with it, as torchvision names them (``conv1`` and ``bn1``). Batch norm that
    stands elsewhere stays.

    Args:
        model: left as it is.

    Returns:
        The copy, in evaluation mode. Its outputs are equal but for rounding; its convolutions have
        a bias more and the folded layers are `nn.Identity`, so that its state dict is another one.
        It cannot be trained further with batch statistics.
    """
    folded = copy.deepcopy(model).eval()
    for parent, conv_name, norm_name in list(_pairs(folded)):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
        setattr(parent, norm_name, nn.Identity())
    return folded


@torch.no_grad()
def restore_batch_norm(
    model: Model, batches: Sequence[object], run: Callable[[Model, object], object] | None = None
) -> Model:
    """A copy of a model with folded weights that can be trained with batch statistics.

    Weights from a file with folded batch norm leave each such layer an identity (plus a bias). For
    inference that is all the same, but in training mode batch norm then normalises what already has
    its scale, and the network is another one. Here the running mean and variance become those that
    the layers meet on ``batches``, and their weights and biases change so that the outputs in
    evaluation mode stay as they are. In training mode they are about the same from then on.

    Args:
        model: left as it is.
        batches: what ``run`` gives to the model, a batch each; some tens of images are enough.
        run: called with the model and a batch; None for ``model(batch)``.

    Returns:
        The copy, in the mode of ``model``.

    Raises:
        ValueError: no batches.
    """
    if not batches:
        raise ValueError("batches is empty: batch norm needs images to measure")
    restored = copy.deepcopy(model).eval()
    norms = [m for m in restored.modules() if isinstance(m, nn.BatchNorm2d)]
    moments: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    hooks = [norm.register_forward_pre_hook(partial(_measure, moments)) for norm in norms]
    for batch in batches:
        restored(batch) if run is None else run(restored, batch)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        if moments[norm]:
            _restate(norm, torch.stack(moments[norm]))
    return restored.train(model.training)


def _measure(
    moments: dict[nn.Module, list[Tensor]], norm: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    """Keep count, mean and mean square ``[3, C]`` of a batch norm's input ``[B, C, H, W]``."""
    x = inputs[0].double().transpose(0, 1).flatten(1)
    count = torch.full((len(x),), float(x.shape[1]), dtype=x.dtype, device=x.device)
    moments[norm].append(torch.stack([count, x.mean(dim=1), x.square().mean(dim=1)]))


def _restate(norm: nn.BatchNorm2d, moments: Tensor) -> None:
    """Set the running figures from moments ``[N, 3, C]``, and keep the layer's function."""
    counts, means, squares = moments.unbind(1)
    share = counts / counts.sum(dim=0)
    mean = (share * means).sum(dim=0)
    variance = ((share * squares).sum(dim=0) - mean.square()).clamp(min=0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    norm.bias.copy_(norm.bias + slope * (mean - norm.running_mean))
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each parent module with the names of a convolution and of the batch norm that follows it."""
    for parent in model.modules():
        children = dict(parent.named_children())
        if isinstance(parent, nn.Sequential):
            names = list(pairwise(children))
        else:
            names = [(n, re.sub(r"^conv(?=\d*$)", "bn", n)) for n in children]
        for first, second in names:
            norm = children.get(second)
            if type(children[first]) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
                yield parent, first, second
