"""COCO result files straight into columns, for files without fault."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from instseg.ops import backend
from instseg.structures.run_lengths import ResultColumns


def result_columns(text: npt.NDArray[np.uint8]) -> ResultColumns | None:
    """The columns of a COCO result file.

    Args:
        text: ``uint8 [L]``, the whole file.

    Returns:
        None if anything is not as COCO's own files have it: other shapes than boxes of four numbers
        and masks of ``size`` and compressed ``counts``, shapes for some records alone, a key that
        is missing or there twice, text that is not JSON. Ids and run lengths are not looked into.
    """
    result: ResultColumns | None = backend.kernel("result_columns", torch.device("cpu"))(text)
    return result
