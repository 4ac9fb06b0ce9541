"""What the suites of detectors and of semantic networks both ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instseg.engine.weights import load_weights, save_weights


def check_gradients(model: nn.Module, losses: dict[str, Tensor]) -> None:
    """Finite scalars, whose sum reaches every parameter that is trained with a finite gradient."""
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # Else the processes of a group would wait for each other's gradients.
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def loss_history(
    model: nn.Module, images: list[Tensor], targets: Sequence[Any], *, lr: float, steps: int
) -> list[float]:
    """The loss at each of some steps of SGD on one batch, with the same draws in each."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    history = []
    for _ in range(steps):
        torch.manual_seed(1)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append(loss.item())
    return history


def check_state_dict_round_trip(model: nn.Module, folder: Path) -> None:
    save_weights(folder / "w.safetensors", model.state_dict(), {})
    tensors, _ = load_weights(folder / "w.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.load_state_dict(tensors)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())


def check_training_repeats(model: nn.Module, images: list[Tensor], targets: Sequence[Any]) -> None:
    """The losses are equal to the bit where the draws are."""
    model.train()
    figures = []
    for _ in range(2):
        torch.manual_seed(3)
        figures.append({name: loss.item() for name, loss in model(images, targets).items()})
    assert figures[0] == figures[1]


def check_outputs_repeat(model: nn.Module, images: list[Tensor]) -> None:
    for first, second in zip(model.eval()(images), model(images), strict=True):
        check_equal(first, second)


def check_compiles_in_one_graph(model: nn.Module, images: list[Tensor]) -> None:
    torch._dynamo.reset()
    (expected,) = model.eval()(images)
    for network in model.networks:
        network.compile(fullgraph=True, backend="eager")
    (found,) = model(images)
    check_equal(found, expected)


def check_equal(a: Any, b: Any) -> None:
    """To the bit, of predicted objects or maps."""
    assert type(a) is type(b)
    for name in ("boxes", "scores", "labels"):
        if hasattr(a, name):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def class_layers(make: Callable[[int], nn.Module]) -> tuple[set[str], set[str]]:
    """The entries of the state dict whose shapes follow the classes, and those that it says do."""
    with torch.device("meta"):  # the shapes alone
        few, many = make(2), make(5)
    shapes = {key: value.shape for key, value in many.state_dict().items()}
    differing = {key for key, value in few.state_dict().items() if value.shape != shapes[key]}
    named = {key for key in shapes if any(fnmatchcase(key, p) for p in few.class_layers)}
    return differing, named
