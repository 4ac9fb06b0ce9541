"""Scoring a model on a loader, without a trace in the training."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from instseg.engine.amp import Amp, autocast
from instseg.engine.distributed import merge_evaluators
from instseg.engine.protocols import Evaluator, Loader, ScoresT

_log = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    loader: Loader,
    evaluator: Evaluator[ScoresT],
    *,
    device: torch.device,
    amp: Amp | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, ScoresT]:
    """Predict every image of ``loader`` and score the predictions.

    In a process group every process reads its own part, and all return the scores of the whole.
    Predictions are carried back to the size each image has on the disk. The model's mode is as
    before when it returns.

    Args:
        model: ``model(images)`` returns one prediction for each image, in its coordinates.
        loader: its epoch 0 is read; targets are not used.
        evaluator: is reset first.
        device: where ``model`` is.
        amp: half type of the forward pass.
        on_batch: called after each batch with the number done and the number in all.

    Raises:
        ValueError: the model returned another number of predictions than images.
    """
    was_training = model.training
    model.eval()
    evaluator.reset()
    try:
        with torch.inference_mode():
            for done, batch in enumerate(loader.epoch(0), start=1):
                if len(batch) == 0:
                    _log.warning("evaluation batch %d is empty: no image of it was readable", done)
                else:
                    with autocast(device, amp):
                        predictions = model([image.to(device) for image in batch.images])
                    if len(predictions) != len(batch):
                        raise ValueError(
                            f"{len(batch)} images gave {len(predictions)} predictions "
                            f"(images {list(batch.image_ids)})"
                        )
                    evaluator.update(
                        batch.image_ids,
                        [
                            prediction.to("cpu").resized(size)
                            for prediction, size in zip(
                                predictions, batch.original_sizes, strict=True
                            )
                        ],
                    )
                if on_batch is not None:
                    on_batch(done, len(loader))
    finally:
        if was_training:
            model.train()
    merge_evaluators(evaluator)
    return evaluator.compute()
