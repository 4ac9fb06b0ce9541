"""Mixed precision: which half type the forward pass runs in."""

from __future__ import annotations

from typing import Literal

import torch

Amp = Literal["bf16", "fp16"]
"""bf16 needs no loss scaling; fp16 gets a `torch.amp.GradScaler` in training."""

_DTYPES: dict[Amp, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: Amp | None) -> torch.autocast:
    """`torch.autocast` for ``device`` in the half type ``amp``; a no-op for None."""
    if amp is None:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=_DTYPES[amp])
