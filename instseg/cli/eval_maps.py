"""`instseg eval-maps`: what is not COCO's metric, of class maps, membranes, nuclei and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from instseg.cli.common import CONSOLE, run
from instseg.config.build import build_device, build_val_loader, predicts_maps, read_index
from instseg.config.build_maps import build_dsb_evaluator, build_map_evaluator
from instseg.config.build_parts import build_pair_evaluation
from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config
from instseg.config.schema_semantic import Pix2PixConfig, SemanticConfig
from instseg.config.trained import TrainedModel, inference_config, load_trained
from instseg.data.loader import DetectionLoader
from instseg.engine.evaluate import evaluate
from instseg.evaluation.bootstrap import Interval
from instseg.evaluation.json_file import write_json
from instseg.evaluation.map_intervals import stat_intervals
from instseg.evaluation.scores import BootstrapOptions
from instseg.evaluation.with_truth import TruthEvaluator
from instseg.inference.predictor import TiledModel
from instseg.inference.thresholds import AdaptiveThreshold
from instseg.inference.tile_grid import Mode
from instseg.models.semantic.segmenter import SemanticSegmenter

_EPILOG = """\
examples:
  eval_maps.py --config configs/isbi2012/unet.yaml --weights runs/isbi2012/unet/final.safetensors \\
      --metric semantic em threshold
  eval_maps.py --config configs/dsb2018/unet.yaml --weights runs/dsb2018/unet/final.safetensors

Of class maps it prints overlap and boundary scores of the classes ("semantic"), the Rand and
information scores of membranes ("em") and what the threshold does ("threshold", with the best one
by ROC, precision and recall, or overlap; model.threshold=0.4 sets it). Of objects it prints the
score of the 2018 Data Science Bowl, of image to image L1, PSNR and SSIM.
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Scores of class maps, membranes, nuclei and pictures, with confidence "
        "intervals by the bootstrap over images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML whose data.val is scored")
    parser.add_argument("--weights", type=Path, required=True, help="weights of train_net.py")
    parser.add_argument(
        "--metric", nargs="+", choices=["semantic", "em", "threshold"],
        help="of class maps [evaluation.maps of the config]",
    )  # fmt: skip
    parser.add_argument(
        "--adaptive", choices=["local", "otsu"], help="find each map's threshold in the map itself"
    )
    parser.add_argument("--score", type=float, default=0.5, help="least score of objects [0.5]")
    parser.add_argument("--tile", type=int, help="predict in windows of this side, in pixels")
    parser.add_argument("--blend", action="store_true", help="blend the windows, see --tile")
    parser.add_argument("--replicates", type=int, default=1000, help="of the bootstrap; 0: none")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change the config")
    args = parser.parse_intermixed_args(argv)
    try:
        options = BootstrapOptions(args.replicates, args.confidence)
    except ValueError as error:
        parser.error(str(error))
    return run(partial(_command, args, options))


def _command(args: argparse.Namespace, options: BootstrapOptions) -> int:
    config = load_config(args.config, Config, args.overrides)
    trained = load_trained(args.weights, inference_config(config))
    loader, evaluator = _loader_and_evaluator(args, config, trained)
    device = build_device(config)
    model = _model(args, trained.model.to(device))
    with Progress(console=CONSOLE, transient=True) as bar:
        task = bar.add_task("evaluating")
        scores = evaluate(
            model,
            loader,
            evaluator,
            device=device,
            amp=config.train.amp,
            on_batch=lambda done, total: bar.update(task, completed=done, total=total),
        )
    intervals = {k: stat_intervals(e, options) for k, e in evaluator.evaluators.items()}
    for kind, figures in intervals.items():
        Console().print(_table(kind, figures, len(evaluator.evaluators[kind]), options))
    if args.json is not None:
        write_json({kind: _plain(scores[kind], intervals[kind]) for kind in scores}, args.json)
    return 0


def _loader_and_evaluator(
    args: argparse.Namespace, config: Config, trained: TrainedModel
) -> tuple[DetectionLoader, TruthEvaluator[Any, Any]]:
    _check_options(args, config, len(trained.categories))
    if isinstance(config.model, Pix2PixConfig):
        return build_pair_evaluation(config)
    index = read_index(config.data.val, need_masks=True)
    loader = build_val_loader(config, index)
    if predicts_maps(config):
        kinds = args.metric or config.evaluation.maps
        relabel = None if args.adaptive is None else AdaptiveThreshold(args.adaptive)
        return loader, build_map_evaluator(
            config, index, trained.class_names, kinds, relabel=relabel
        )
    if not config.model.predicts_masks:
        raise ConfigError(f"{args.config}: this model predicts no masks, which the metric is for")
    return loader, build_dsb_evaluator(index, args.score)


def _check_options(args: argparse.Namespace, config: Config, num_classes: int) -> None:
    """Raise ConfigError for options that do not fit the model."""
    if args.blend and args.tile is None:
        raise ConfigError("--blend is how windows are joined: give their side with --tile")
    model = config.model
    if not isinstance(model, SemanticConfig) or not predicts_maps(config):
        for name in ("metric", "adaptive", "tile"):
            if getattr(args, name) is not None:
                made = "pictures" if isinstance(model, Pix2PixConfig) else "objects"
                raise ConfigError(
                    f"--{name} is for models that predict class maps, this one {made}"
                )
        return
    exclusive = model.classes != "multilabel"
    if args.adaptive is not None and exclusive and model.outputs(num_classes) != 2:
        raise ConfigError(
            f"--adaptive finds a threshold between two classes, this model has "
            f"{model.outputs(num_classes)} that exclude each other"
        )


def _model(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    if args.tile is None:
        return model
    assert isinstance(model, SemanticSegmenter)
    device = next(model.parameters()).device
    try:
        mode: Mode = "blend" if args.blend else "exact"
        return TiledModel(model, args.tile, mode=mode, keep_scores=True).to(device)
    except ValueError as error:
        raise ConfigError(f"--tile {args.tile}: {error}") from None


def _table(
    kind: str, figures: dict[str, Interval], images: int, options: BootstrapOptions
) -> Table:
    table = Table(title=f"{kind}: {images} images")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column(f"{100 * options.confidence:g} % interval", justify="right")
    for name, figure in figures.items():
        known = "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"
        table.add_row(name, "-" if figure.value == -1 else f"{figure.value:.4f}", known)
    return table


def _plain(scores: Any, intervals: dict[str, Interval]) -> dict[str, Any]:
    return scores.to_dict() | {"intervals": {name: asdict(i) for name, i in intervals.items()}}
