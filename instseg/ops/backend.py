"""Which implementation of an op runs: plain PyTorch, compiled C++ / CUDA, or Triton.

By default the fastest one that works for a tensor's device is taken, op by op:

* ``ext``: the compiled library of ``csrc/`` (see `instseg.ops.build`), for CPU and, where ``nvcc``
  was there when it was built, CUDA tensors;
* ``triton``: kernels that Triton compiles at their first call, for CUDA tensors (and, slowly, for
  CPU tensors when ``TRITON_INTERPRET=1`` is set before Triton is imported);
* ``torch``: plain PyTorch, for every op and every device.

``INSTSEG_OPS=torch|ext|triton`` or `use_backend` forces one. Ops that it does not have run in
plain PyTorch; if it does not work at all for a tensor's device, that is an error.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

BACKENDS = ("torch", "ext", "triton")
_PREFERENCE = {"cpu": ("ext", "torch"), "cuda": ("ext", "triton", "torch")}

_forced: ContextVar[str | None] = ContextVar("instseg_ops_backend", default=None)


class BackendError(RuntimeError):
    """A backend was asked for that does not work here; the text says why and what to do."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend within a ``with`` block; compiled models obey it too.

    Args:
        name: "torch", "ext" or "triton".

    Raises:
        BackendError: there is no such backend, or it cannot be loaded on this machine.
    """
    _load(name, f"use_backend({name!r})")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The backends that work for tensors on ``device``."""
    kind = torch.device(device).type
    return tuple(name for name in BACKENDS if _why_not(name, kind) is None)


def kernel(op: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of ``op`` for tensors on ``device``.

    Raises:
        BackendError: the forced backend does not work there.
    """
    return _choose(op, device.type, _forced.get(), os.environ.get("INSTSEG_OPS") or None)


@functools.cache
def _choose(op: str, device: str, forced: str | None, variable: str | None) -> Callable[..., Any]:
    name = forced or variable
    order = _PREFERENCE.get(device, ("torch",))
    if name is not None:
        _load(name, "use_backend" if forced else f"INSTSEG_OPS={name}")
        reason = _why_not(name, device)
        if reason is not None and op in _kernels(name):
            raise BackendError(f"the {name} backend cannot run {op} on {device}: {reason}")
        order = (name, "torch")
    for candidate in order:
        if _why_not(candidate, device) is None and op in _kernels(candidate):
            return _kernels(candidate)[op]
    raise AssertionError(f"the torch backend lacks {op}")


def _load(name: str, asked_by: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"{asked_by}: no such backend, choose from {', '.join(BACKENDS)}")
    try:
        _kernels(name)
    except (ImportError, OSError) as error:
        raise BackendError(f"{asked_by}: the {name} backend cannot be loaded: {error}") from error


@functools.cache
def _why_not(name: str, device: str) -> str | None:
    """Why a backend does not work for tensors on a kind of device; None if it does."""
    try:
        module = importlib.import_module(f"instseg.ops._{name}")
    except (ImportError, OSError) as error:
        return str(error)
    reason: str | None = module.why_not(device)
    return reason


def _kernels(name: str) -> Mapping[str, Callable[..., Any]]:
    kernels: Mapping[str, Callable[..., Any]]
    kernels = importlib.import_module(f"instseg.ops._{name}").KERNELS
    return kernels
