"""A trained detector made faster for inference, with the same outputs but for rounding."""

from __future__ import annotations

import torch

from instseg.models.detection.detector import Detector
from instseg.models.fuse import fold_batch_norm


def optimize_for_inference(model: Detector, *, compiled: bool = False) -> Detector:
    """A copy with batch norm folded into convolutions and weights laid out channels-last.

    Args:
        model: left as it is.
        compiled: also compile the parts that take most of the time (`Detector.networks`) with the
            weights as constants. That takes a minute at the first call, and again for each other
            size of image; it pays where all images have one size. Call the result under
            ``torch.inference_mode`` or ``torch.no_grad``: otherwise the weights stay variables.

    Returns:
        The copy, in evaluation mode. It cannot be trained, and its state dict is another one.
    """
    fast = fold_batch_norm(model).to(memory_format=torch.channels_last)
    if compiled:
        for network in fast.networks:
            network.compile(options={"freezing": True})
    return fast
