"""`instseg eval`: COCO scores of a trained model, or of a result file of any system."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from instseg.cli.common import CONSOLE, run
from instseg.config.build import build_device, build_evaluator, build_val_loader, read_val_index
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.trained import inference_config, load_trained
from instseg.engine.evaluate import evaluate
from instseg.evaluation.coco import BACKENDS, evaluate_files
from instseg.evaluation.report import category_table, summary_lines, write_scores
from instseg.evaluation.results import write_results
from instseg.evaluation.scores import CocoScores

_EPILOG = """\
examples:
  eval_coco.py --config configs/demo/mask_rcnn.yaml --weights runs/demo/best.safetensors
  eval_coco.py --gt instances_val2017.json --dt results.json --iou-type bbox segm --json scores.json
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="COCO's twelve numbers for boxes and masks, and AP for each category.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("a trained model")
    model.add_argument("--config", type=Path, help="YAML file whose data.val is scored")
    model.add_argument("--weights", type=Path, help="weights of tools/train_net.py")
    model.add_argument("--save-results", type=Path, metavar="FILE", help="write COCO results there")
    model.add_argument("overrides", nargs="*", metavar="key.path=value", help="change the config")
    files = parser.add_argument_group("a result file")
    files.add_argument("--gt", type=Path, help="COCO annotations")
    files.add_argument("--dt", type=Path, help="COCO results")
    parser.add_argument(
        "--iou-type", nargs="+", choices=["bbox", "segm"], help="default: all there is"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: the config's, or hotcoco"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    args = parser.parse_intermixed_args(argv)
    given = {name for name in ("config", "weights", "gt", "dt") if getattr(args, name)}
    if given not in ({"config", "weights"}, {"gt", "dt"}):
        parser.error("give --config and --weights, or --gt and --dt")
    if given == {"gt", "dt"} and (args.overrides or args.save_results):
        parser.error("key.path=value and --save-results belong to --config and --weights")
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    if args.gt is not None:
        scores = evaluate_files(args.gt, args.dt, args.iou_type, args.backend or "hotcoco")
    else:
        scores = _evaluate_model(args)
    show(scores)
    if args.json is not None:
        write_scores(scores, args.json)
    return 0


def _evaluate_model(args: argparse.Namespace) -> dict[str, CocoScores]:
    overrides = list(args.overrides)
    if args.iou_type:
        overrides.append(f"evaluation.iou_types=[{', '.join(args.iou_type)}]")
    if args.backend:
        overrides.append(f"evaluation.backend={args.backend}")
    config = load_config(args.config, Config, overrides)
    trained = load_trained(args.weights, inference_config(config))
    index = read_val_index(config)
    evaluator = build_evaluator(config, index, trained.class_names)
    loader = build_val_loader(config, index)
    device = build_device(config)
    with Progress(console=CONSOLE, transient=True) as bar:
        task = bar.add_task("evaluating")
        scores = evaluate(
            trained.model.to(device),
            loader,
            evaluator,
            device=device,
            amp=config.train.amp,
            on_batch=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if args.save_results is not None:
        write_results(evaluator.results(), args.save_results)
    return scores


def show(scores: Mapping[str, CocoScores]) -> None:
    """Print COCO's lines for each IoU type, and the categories' table."""
    console = Console()
    for kind in scores:
        console.print(
            f"{kind}: {scores[kind].detections} detections in {scores[kind].images} images"
        )
        for line in summary_lines({kind: scores[kind]}):
            console.print(line, highlight=False, markup=False)
    console.print(category_table(scores))
