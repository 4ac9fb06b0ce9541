"""One update of the weights: forward, backward, clip, step, average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from instseg.engine.amp import Amp, autocast
from instseg.engine.protocols import Batch

MAX_OVERFLOWS = 24
"""fp16 steps in a row whose gradient overflows before training stops: the loss scale has by then
fallen from 2^16 to 2^-8, so that its size is not the reason."""


@dataclass(frozen=True)
class Gradient:
    """What one backward pass over a step's batches gave.

    Args:
        losses: for each batch, each loss's value and their sum under ``loss``.
        means: the same over all batches, every image weighing the same.
        norm: 2-norm of the gradient before clipping.
        problem: why the step must not be taken, None if it may.
    """

    losses: list[dict[str, float]]
    means: dict[str, float]
    norm: float
    problem: str | None


class Updater:
    """Turns batches into updates of a model's weights (and of their average).

    Args:
        model: ``model(images, targets)`` returns a dict of scalar losses; on its final device.
        optimizer: over parameters of ``model``.
        amp: half type of the forward pass; fp16 scales the loss.
        clip_norm: limit on the gradient's 2-norm.
        ema_decay: decay of the average of parameters and buffers; None for no average.

    Raises:
        ValueError: a parameter of ``optimizer`` is not one of ``model``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        amp: Amp | None,
        clip_norm: float | None,
        ema_decay: float | None,
    ) -> None:
        _check_optimizer(model, optimizer)
        self.model = model
        self.optimizer = optimizer
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self._amp = amp
        self._clip_norm = clip_norm
        self._overflows = 0

    @property
    def averaged_model(self) -> nn.Module:
        """The model to evaluate and keep: the average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def compute_gradient(self, batches: Sequence[Batch]) -> Gradient:
        """The gradient of the mean loss over all images of ``batches``, none of them empty.

        Losses are means over a batch's images, so batch b weighs ``len(b) / total``: k batches
        give the gradient of one batch with all their images. The host waits for the device once
        (the loss scaler of fp16 waits once more, in `apply`).
        """
        self.model.zero_grad(set_to_none=True)
        total = sum(len(batch) for batch in batches)
        weights = [len(batch) / total for batch in batches]
        losses = []
        for batch, weight in zip(batches, weights, strict=True):
            with autocast(self.device, self._amp):
                parts = self.model(
                    [image.to(self.device, non_blocking=True) for image in batch.images],
                    [target.to(self.device) for target in batch.targets],
                )
            loss = _checked_sum(parts)
            self.scaler.scale(loss * weight).backward()
            losses.append({"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}})
        norm = self._clip()
        return self._read(losses, weights, norm)

    def apply(self) -> None:
        """Take the step along the gradient, and move the average."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _clip(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_norm is not None:
            clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return norm

    def _read(
        self, losses: list[dict[str, Tensor]], weights: list[float], norm: Tensor
    ) -> Gradient:
        """Bring every figure to the host in one transfer and judge it."""
        figures = [norm, *(value for parts in losses for value in parts.values())]
        norm_value, *values = torch.stack([f.float() for f in figures]).tolist()
        rest = iter(values)
        read = [{name: next(rest) for name in parts} for parts in losses]
        means: dict[str, float] = {}
        for parts, weight in zip(read, weights, strict=True):
            for name, value in parts.items():
                means[name] = means.get(name, 0.0) + weight * value
        return Gradient(read, means, norm_value, self._problem(read, norm_value))

    def _problem(self, losses: list[dict[str, float]], norm: float) -> str | None:
        for parts in losses:
            bad = [
                f"{name} is {value}" for name, value in parts.items() if not math.isfinite(value)
            ]
            if bad:
                return ", ".join(bad)
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if not self._overflows:
            return None
        if not self.scaler.is_enabled():
            return f"the gradient's norm is {norm}"
        if self._overflows >= MAX_OVERFLOWS:
            return f"the gradient overflowed fp16 in {self._overflows} steps in a row"
        return None


def _checked_sum(losses: object) -> Tensor:
    """The sum of a model's losses.

    Raises:
        TypeError: the model did not return a dict of scalar tensors.
        ValueError: a loss is named ``loss``, which is the sum's name.
    """
    if not isinstance(losses, dict) or not losses:
        raise TypeError(
            f"a training model must return a dict of losses, got {type(losses).__name__}"
        )
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim != 0:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss '{name}' must be a scalar tensor, got {found}")
    if "loss" in losses:
        raise ValueError("a model's loss may not be named 'loss': that is the sum's name")
    return reduce(torch.add, losses.values())


def _check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    known = {id(parameter) for parameter in model.parameters()}
    for index, group in enumerate(optimizer.param_groups):
        foreign = sum(id(parameter) not in known for parameter in group["params"])
        if foreign:
            raise ValueError(f"{foreign} parameters of optimizer group {index} are not the model's")
