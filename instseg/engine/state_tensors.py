"""A training's tensors as one flat dict, and back into the live objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.optim import Optimizer

from instseg.engine.errors import CheckpointError
from instseg.engine.stored import StoredTensors

_NOT_SETTINGS = ("params", "param_names", "lr")


def flatten(modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor of the modules and the optimizer, by name.

    Args:
        modules: by prefix; gives ``<prefix>.<state_dict key>``. One of them, ``model``, holds the
            optimizer's parameters.
        optimizer: gives ``optimizer.<parameter name>.<slot>``.

    Raises:
        TypeError: a state is not a tensor and so cannot be stored.
    """
    tensors = _module_tensors(modules)
    for name, parameter in _optimized(modules["model"], optimizer):
        for slot, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as '{slot}' of "
                    f"{name}; checkpoints hold tensors only"
                )
            tensors[f"optimizer.{name}.{slot}"] = value
    return tensors


def optimizer_slots(model: nn.Module, optimizer: Optimizer) -> dict[str, list[str]]:
    """The names of the state tensors of each parameter that has any."""
    return {
        name: sorted(optimizer.state[parameter])
        for name, parameter in _optimized(model, optimizer)
        if optimizer.state.get(parameter)
    }


def group_settings(model: nn.Module, optimizer: Optimizer) -> list[dict[str, JsonValue]]:
    """Each parameter group's plain settings and the names of its parameters.

    The present rate ``lr`` is left out: it follows from ``initial_lr``, the schedule and the step.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {key: _plain(value) for key, value in group.items() if key not in _NOT_SETTINGS}
        | {"params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]


@torch.no_grad()
def restore(
    path: Path,
    stored: StoredTensors,
    slots: Mapping[str, list[str]],
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
) -> None:
    """Copy a checkpoint's tensors into the live objects; none of them if they do not fit.

    Args:
        path: for messages.
        stored: as `flatten` made them.
        slots: as `optimizer_slots` made them.
        modules: as for `flatten`.
        optimizer: its groups' settings stay as they are.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or type; the message
            names the file, the key, what was expected and what was found.
        UnreadableFileError: the files of a sharded checkpoint cannot be read.
    """
    targets = _module_tensors(modules)
    parameters = dict(_optimized(modules["model"], optimizer))
    slot_keys = {f"optimizer.{name}.{slot}" for name in slots for slot in slots[name]}
    _check_keys(path, expected=set(targets) | slot_keys, found=set(stored.about))
    for key, target in targets.items():
        _check_tensor(path, key, stored.about[key], target.shape, target.dtype)
    state = _empty_state(path, stored.about, slots, parameters)
    own = {f"optimizer.{name}.{slot}": t for name in state for slot, t in state[name].items()}
    stored.read(targets | own)
    indices = {name: index for index, name in enumerate(parameters)}
    optimizer.load_state_dict(
        {
            "state": {indices[name]: values for name, values in state.items()},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def _module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for key, value in module.state_dict().items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{prefix}.{key} is a {type(value).__name__}; checkpoints hold tensors only"
                )
            tensors[f"{prefix}.{key}"] = value
    return tensors


def _optimized(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters with their names in the model, in the optimizer's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _empty_state(
    path: Path,
    about: Mapping[str, Tensor],
    slots: Mapping[str, list[str]],
    parameters: Mapping[str, nn.Parameter],
) -> dict[str, dict[str, Tensor]]:
    """Tensors for the state by parameter; a slot of the parameter's shape is laid out as it is."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, slot_names in slots.items():
        if name not in parameters:
            raise CheckpointError(
                f"{path}: holds optimizer state for '{name}', which this run does not train"
            )
        parameter = parameters[name]
        for slot in slot_names:
            key = f"optimizer.{name}.{slot}"
            value = torch.empty(about[key].shape, dtype=about[key].dtype)
            if value.ndim > 0:  # all but step counters
                _check_tensor(path, key, about[key], parameter.shape, parameter.dtype)
                value = torch.empty_like(parameter, requires_grad=False)
            state.setdefault(name, {})[slot] = value
    return state


def _check_keys(path: Path, *, expected: set[str], found: set[str]) -> None:
    for kind, keys in (("lacks", expected - found), ("has the unknown", found - expected)):
        if keys:
            named = ", ".join(f"'{key}'" for key in sorted(keys)[:5])
            raise CheckpointError(
                f"{path}: {kind} {named}{' ...' if len(keys) > 5 else ''} ({len(keys)} in all); it "
                "was written by another model or other training settings (optimizer, EMA)"
            )


def _check_tensor(
    path: Path, key: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype
) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise CheckpointError(
            f"{path}: '{key}' is {tensor.dtype} {list(tensor.shape)}, "
            f"this run needs {dtype} {list(shape)}"
        )


def _plain(value: Any) -> JsonValue:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
