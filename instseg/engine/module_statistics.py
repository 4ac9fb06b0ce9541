"""Where in a model values leave the finite range: one micro-batch repeated under observation."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from instseg.engine.amp import Amp, autocast
from instseg.engine.figures import Figure
from instseg.engine.protocols import Batch


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Statistics(_Record):
    """Of the values of one tensor or several.

    Args:
        elements: how many values.
        nan: how many are NaN.
        infinite: how many are infinite.
        minimum: least finite value; this and the others are 0 where none is finite.
        maximum: greatest finite value.
        mean: of the finite values.
        norm: 2-norm of the finite values.
    """

    elements: int
    nan: int
    infinite: int
    minimum: Figure
    maximum: Figure
    mean: Figure
    norm: Figure

    @classmethod
    def of(cls, tensor: Tensor) -> Statistics:
        """Of a floating tensor of any shape; sums are float64, so that they do not overflow."""
        tensor = tensor.detach()
        mask = tensor.isfinite()
        bad = tensor.numel() - int(mask.sum())
        nan = int(tensor.isnan().sum()) if bad else 0
        finite = tensor[mask] if bad else tensor
        figures = [0.0] * 4
        if finite.numel():
            low, high = finite.aminmax()
            mean = finite.sum(dtype=torch.float64) / finite.numel()
            norm = torch.linalg.vector_norm(finite, dtype=torch.float64)
            figures = torch.stack([low.double(), high.double(), mean, norm]).tolist()
        minimum, maximum, mean_, norm_ = figures
        return cls(
            elements=tensor.numel(),
            nan=nan,
            infinite=bad - nan,
            minimum=minimum,
            maximum=maximum,
            mean=mean_,
            norm=norm_,
        )

    @property
    def bad(self) -> int:
        """How many values are not finite."""
        return self.nan + self.infinite

    def merge(self, other: Statistics) -> Statistics:
        """Of the values of both."""
        mine, its = self.elements - self.bad, other.elements - other.bad
        if mine == 0 or its == 0:
            finite = self if its == 0 else other
        else:
            finite = Statistics(
                elements=0,
                nan=0,
                infinite=0,
                minimum=min(self.minimum, other.minimum),
                maximum=max(self.maximum, other.maximum),
                mean=(mine * self.mean + its * other.mean) / (mine + its),
                norm=math.hypot(self.norm, other.norm),
            )
        counts = {
            "elements": self.elements + other.elements,
            "nan": self.nan + other.nan,
            "infinite": self.infinite + other.infinite,
        }
        return finite.model_copy(update=counts)

    def __str__(self) -> str:
        return f"{self.nan} NaN and {self.infinite} infinite of {self.elements} values"


class ModuleRecord(_Record):
    """One call of a module.

    Args:
        name: dotted, "" for the model; "images" and "targets" are what it was given.
        kind: the module's class, "input" for what the model was given.
        output: of all floating tensors that it returned, None if there are none.
        gradient: of the loss with respect to them, None if it does not reach them.
    """

    name: str
    kind: str
    output: Statistics | None
    gradient: Statistics | None


class ParameterRecord(_Record):
    """A parameter or floating buffer and its gradient, None where it has none."""

    name: str
    value: Statistics
    gradient: Statistics | None


class Examination(_Record):
    """What repeating the forward and backward pass of one micro-batch showed.

    Args:
        losses: each loss's value, and their sum as ``loss``.
        modules: the images, the targets, then every call of a module in the order in which they
            returned.
        parameters: parameters and buffers in the model's order.
        first_gradient: in words, the first gradient of the backward pass that is not finite.
        anomaly: what torch's anomaly mode says, None if it was off or found nothing.
    """

    losses: dict[str, Figure]
    modules: list[ModuleRecord]
    parameters: list[ParameterRecord]
    first_gradient: str | None
    anomaly: str | None = None

    @property
    def findings(self) -> list[str]:
        """What is not finite where it begins, in words; empty if everything is finite."""
        found = []
        for parameter in self.parameters:
            if parameter.value.bad:
                found.append(f"before the step: {parameter.name}: {parameter.value}")
                break
        for module in self.modules:
            if module.output is not None and module.output.bad:
                found.append(f"forward: first in {describe(module)}: {module.output}")
                break
        if self.first_gradient is not None:
            found.append(f"backward: first in the gradient of {self.first_gradient}")
        return found


def describe(record: ModuleRecord) -> str:
    """A module's output in words."""
    if record.kind == "input":
        return f"the {record.name}"
    return f"the output of {record.name or 'the model itself'} ({record.kind})"


def examine(
    model: nn.Module,
    batch: Batch,
    *,
    device: torch.device,
    amp: Amp | None,
    scale: float,
    anomaly: bool = False,
) -> Examination:
    """Repeat one micro-batch and take the statistics of everything on the way.

    The random generators are to be in the state from which the micro-batch started. They, the
    model's buffers and its gradients, which are dropped, are left changed.

    Args:
        model: in the mode and with the weights of the step; not wrapped in DDP.
        batch: at least one image.
        device: of the model.
        amp: half type of the forward pass.
        scale: the factor on the loss before the backward pass: loss scale times the share of the
            micro-batch in the step.
        anomaly: look for the operation with `torch.autograd.set_detect_anomaly`; slow.
    """
    images = [image.to(device) for image in batch.images]
    targets = [target.to(device) for target in batch.targets]
    observer = _Observer()
    observer.add_input("images", images)
    observer.add_input("targets", targets)
    model.zero_grad(set_to_none=True)
    values = [_parameter(name, tensor) for name, tensor in _floating_state(model)]
    problem = None
    with observer.watching(model), torch.autograd.set_detect_anomaly(anomaly):
        with autocast(device, amp):
            losses: dict[str, Tensor] = model(images, targets)
        loss = reduce(torch.add, losses.values())
        with warnings.catch_warnings(record=anomaly) as caught:
            try:
                (loss * scale).backward()
            except RuntimeError as error:
                if not anomaly:
                    raise
                problem = "\n".join([*(str(w.message) for w in caught or ()), str(error)])
    read = {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    parameters = [
        record.model_copy(update={"gradient": Statistics.of(gradients[record.name])})
        if record.name in gradients
        else record
        for record in values
    ]
    model.zero_grad(set_to_none=True)
    return Examination(
        losses={name: float(value.float()) for name, value in read.items()},
        modules=observer.records(),
        parameters=parameters,
        first_gradient=observer.first_gradient or _first_parameter(parameters),
        anomaly=problem,
    )


class _Observer:
    """Hooks that note the statistics of outputs and of their gradients."""

    def __init__(self) -> None:
        self.first_gradient: str | None = None
        self._records: list[ModuleRecord] = []
        self._gradients: dict[int, Statistics] = {}

    def add_input(self, name: str, value: object) -> None:
        output = _statistics(list(_floating(value)))
        self._records.append(ModuleRecord(name=name, kind="input", output=output, gradient=None))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        handles = [
            module.register_forward_hook(partial(self._on_output, name))
            for name, module in model.named_modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def records(self) -> list[ModuleRecord]:
        """The inputs, then the calls with their gradients."""
        return [
            record.model_copy(update={"gradient": self._gradients.get(index)})
            for index, record in enumerate(self._records)
        ]

    def _on_output(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        tensors = list(_floating(output))
        record = ModuleRecord(
            name=name, kind=type(module).__name__, output=_statistics(tensors), gradient=None
        )
        index = len(self._records)
        self._records.append(record)
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._on_gradient, index))

    def _on_gradient(self, index: int, gradient: Tensor) -> None:
        if gradient.numel() == 0:
            return
        found = Statistics.of(gradient)
        if found.bad and self.first_gradient is None:
            self.first_gradient = f"{describe(self._records[index])}: {found}"
        before = self._gradients.get(index)
        self._gradients[index] = found if before is None else before.merge(found)


def _floating(value: object) -> Iterator[Tensor]:
    """Every floating tensor with elements in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _floating(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _floating(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _floating(getattr(value, field.name))


def _statistics(tensors: list[Tensor]) -> Statistics | None:
    return reduce(Statistics.merge, map(Statistics.of, tensors)) if tensors else None


def _floating_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.numel():
            yield name, tensor


def _parameter(name: str, tensor: Tensor) -> ParameterRecord:
    return ParameterRecord(name=name, value=Statistics.of(tensor), gradient=None)


def _first_parameter(parameters: list[ParameterRecord]) -> str | None:
    """The last of the model, which the backward pass reaches first."""
    for record in reversed(parameters):
        if record.gradient is not None and record.gradient.bad:
            return f"{record.name}: {record.gradient}"
    return None
