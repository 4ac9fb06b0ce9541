"""Scoring a trained model on the validation data of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from instseg.cli.common import CONSOLE
from instseg.cli.scored import Scored
from instseg.config.build import (
    build_coco_evaluator,
    build_device,
    build_val_loader,
    predicts_maps,
    read_val_index,
)
from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config
from instseg.config.schema_semantic import Pix2PixConfig
from instseg.config.trained import inference_config, load_trained
from instseg.engine.distributed import own_device, process_group, rank_and_size
from instseg.engine.evaluate import evaluate
from instseg.evaluation.params import CocoParams
from instseg.evaluation.scores import BootstrapOptions


def evaluate_model(
    config_path: Path,
    weights: Path,
    overrides: Sequence[str],
    params: CocoParams,
    options: BootstrapOptions,
    *,
    keep_records: bool,
) -> Scored:
    """Predict and score ``data.val``, with a progress bar; under torchrun, each process a part.

    Raises:
        ConfigError, EngineError, AnnotationError, OSError: as training and prediction do.
    """
    config = load_config(config_path, Config, overrides)
    if predicts_maps(config) or isinstance(config.model, Pix2PixConfig):
        raise ConfigError(
            f"{config_path}: this model predicts no objects that COCO's metric could score: use "
            "tools/eval_maps.py, or let it make objects with model.instances"
        )
    trained = load_trained(weights, inference_config(config))
    index = read_val_index(config)
    evaluator = build_coco_evaluator(
        config,
        index,
        trained.class_names,
        params=params,
        intervals=options,
        keep_results=keep_records,
    )
    device = own_device(build_device(config))
    with process_group(), Progress(console=CONSOLE, transient=True) as bar:
        rank, _ = rank_and_size()
        task = bar.add_task("evaluating", visible=rank == 0)
        scores = evaluate(
            trained.model.to(device),
            build_val_loader(config, index),
            evaluator,
            device=device,
            amp=config.train.amp,
            on_batch=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return Scored(
        scores,
        evaluator.ground_truth,
        evaluator.results() if keep_records else [],
        {int(k): index.records.path(i) for i, k in enumerate(index.records.image_ids)},
        is_writer=rank == 0,
    )
