"""Optimisers and their parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from instseg.engine.layers import backbone_layers, layer_of
from instseg.engine.patterns import check_patterns, is_in

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class LrFactors:
    """What the learning rate of a parameter is multiplied with: both factors where both apply.

    Args:
        layer_decay: layer l of the backbone's L layers (`instseg.engine.layers`) learns at the
            rate times ``layer_decay ** (L - l)``, l from 0; the rest of the model at the rate.
            None for no such factor. Source: Clark et al. 2020, "ELECTRA", section 3.1; Bao et al.
            2022, "BEiT", section 3.
        patterns: factors by patterns of `fnmatch` on the names of parameters or of modules that
            hold them; of several that match the last one counts.

    Raises:
        ValueError: ``layer_decay`` is not in (0, 1], or a factor is not positive.
    """

    layer_decay: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        for pattern, factor in self.patterns.items():
            if factor <= 0:
                raise ValueError(f"the rate's factor for {pattern!r} must be positive: {factor}")

    def of_parameters(self, model: nn.Module) -> dict[str, tuple[str, float]]:
        """For each parameter's name, why it has a rate of its own (may be empty), and its factor.

        Raises:
            ValueError: a pattern matches no parameter, or there is no backbone to have layers.
        """
        check_patterns(model, self.patterns)
        layers = [] if self.layer_decay is None else backbone_layers(model)
        found = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            reasons, factor = [], 1.0
            layer = layer_of(name, layers)
            if layer is not None and self.layer_decay is not None:
                reasons.append(f"layer {layer} of {len(layers)} ({layers[layer][0]})")
                factor *= self.layer_decay ** (len(layers) - layer)
            if matching := [pattern for pattern in self.patterns if is_in(name, pattern)]:
                reasons.append(matching[-1])
                factor *= self.patterns[matching[-1]]
            found[name] = (", ".join(reasons), factor)
        return found


def build_optimizer(
    model: nn.Module,
    *,
    name: Literal["sgd", "adamw"],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    lr_factors: LrFactors | None = None,
) -> Optimizer:
    """SGD or AdamW over the trainable parameters, without decay on norms and biases.

    Args:
        model: only parameters with ``requires_grad`` are taken, each once.
        name: the optimiser.
        lr: the base learning rate.
        weight_decay: for the groups ``decay``; the groups ``no_decay`` have 0.
        momentum: of SGD.
        nesterov: of SGD.
        betas: of AdamW.
        lr_factors: parameters with a rate of their own; None for none.

    Raises:
        ValueError: nothing to train, an unknown name, or factors that do not fit the model.
    """
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, lr_factors=lr_factors)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    if name == "adamw":
        # One pass over the memory: on a CPU the default takes several times longer.
        return AdamW(groups, lr=lr, betas=betas, fused=True)
    raise ValueError(f"unknown optimizer '{name}': choose sgd or adamw")


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, lr_factors: LrFactors | None = None
) -> list[dict[str, object]]:
    """The groups ``decay`` and ``no_decay``, and such groups for each rate of its own.

    The groups at the base rate come first, the others from the highest rate down; there are no
    empty ones.

    Not decayed are the parameters of norms, biases, and every other vector or scalar (norms of
    foreign classes, layer scales): decay on them shrinks activations and regularises nothing.
    """
    factors = (lr_factors or LrFactors()).of_parameters(model)
    groups: dict[tuple[str, float, bool], list[tuple[str, nn.Parameter]]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            exempt = parameter.ndim <= 1 or name.endswith("bias") or isinstance(module, NORMS)
            groups.setdefault((*factors[name], exempt), []).append((name, parameter))
    if not seen:
        raise ValueError("no parameter of the model has requires_grad: nothing to train")
    in_order = sorted(groups, key=lambda key: (key[0] != "", -key[1], key[0], key[2]))
    return [
        {
            "name": ", ".join(filter(None, (reason, "no_decay" if exempt else "decay"))),
            "params": groups[reason, factor, exempt],
            "lr": lr * factor,
            "weight_decay": 0.0 if exempt else weight_decay,
        }
        for reason, factor, exempt in in_order
    ]


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
