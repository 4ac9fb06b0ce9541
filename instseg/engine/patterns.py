"""Patterns on the names of a model's parts."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn


def is_in(name: str, pattern: str) -> bool:
    """Whether a pattern of `fnmatch` names a module or parameter, or a module that holds it.

    ``*`` matches dots too: "backbone.*" and "backbone" both take in "backbone.layer1.0.weight".
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def check_patterns(model: nn.Module, patterns: Iterable[str]) -> None:
    """Refuse patterns that take in no parameter.

    Raises:
        ValueError: names the pattern and the near names.
    """
    parameters = [name for name, _ in model.named_parameters()]
    modules = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(is_in(name, pattern) for name in parameters):
            near = get_close_matches(pattern.removesuffix(".*"), modules + parameters, n=5)
            children = [name for name, _ in model.named_children()]
            hint = f"near names are {', '.join(near)}" if near else f"its parts are {children}"
            raise ValueError(f"{pattern!r} matches no parameter of the model; {hint}")
