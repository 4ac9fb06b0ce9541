"""Optimisers and their parameter groups."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def build_optimizer(
    model: nn.Module,
    *,
    name: Literal["sgd", "adamw"],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """SGD or AdamW over the trainable parameters, without decay on norms and biases.

    Args:
        model: only parameters with ``requires_grad`` are taken, each once.
        name: the optimiser.
        lr: the base learning rate of every group.
        weight_decay: for the group ``decay``; the group ``no_decay`` has 0.
        momentum: of SGD.
        nesterov: of SGD.
        betas: of AdamW.

    Raises:
        ValueError: nothing to train, or an unknown name.
    """
    groups = parameter_groups(model, weight_decay)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    if name == "adamw":
        # One pass over the memory: on a CPU the default takes several times longer.
        return AdamW(groups, lr=lr, betas=betas, fused=True)
    raise ValueError(f"unknown optimizer '{name}': choose sgd or adamw")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The groups ``decay`` and ``no_decay``; an empty one is left out.

    Not decayed are the parameters of norms, biases, and every other vector or scalar (norms of
    foreign classes, layer scales): decay on them shrinks activations and regularises nothing.
    """
    decay: list[tuple[str, nn.Parameter]] = []
    no_decay: list[tuple[str, nn.Parameter]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            exempt = parameter.ndim <= 1 or name.endswith("bias") or isinstance(module, NORMS)
            (no_decay if exempt else decay).append((name, parameter))
    if not seen:
        raise ValueError("no parameter of the model has requires_grad: nothing to train")
    groups: list[dict[str, object]] = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def describe_groups(optimizer: Optimizer) -> str:
    """A line for each group: its name, tensors, values, rate and decay."""
    lines = []
    for index, group in enumerate(optimizer.param_groups):
        values = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{group.get('name', f'group {index}')}: {len(group['params'])} tensors, "
            f"{values:,} values, lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
        )
    return "\n".join(lines)
