"""The dump that a non-finite loss leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from instseg.engine.atomic import write_file_atomic
from instseg.engine.protocols import Batch
from instseg.engine.update import Gradient

FILE_NAME = "nonfinite.json"


def write_dump(
    run_dir: Path, *, step: int, epoch: int, lr: float, batches: Sequence[Batch], gradient: Gradient
) -> Path:
    """Write ``nonfinite.json``: what step it was, its images, each loss, lr and gradient norm.

    Numbers that JSON lacks are the strings "nan", "inf" and "-inf".
    """
    content = {
        "problem": gradient.problem,
        "step": step,
        "epoch": epoch,
        "lr": lr,
        "grad_norm": _json_number(gradient.norm),
        "batches": [
            {
                "image_ids": list(batch.image_ids),
                "paths": [str(path) for path in batch.paths],
                "losses": {name: _json_number(value) for name, value in losses.items()},
            }
            for batch, losses in zip(batches, gradient.losses, strict=True)
        ],
    }
    path = run_dir / FILE_NAME
    write_file_atomic(path, json.dumps(content, indent=2, allow_nan=False).encode())
    return path


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
