"""`instseg eval`: scores of a trained model, or of result files of any system."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from instseg.cli.common import run
from instseg.cli.scored import Scored
from instseg.evaluation.coco import BACKENDS, evaluate_files, match_records, read_files, score
from instseg.evaluation.compare import Comparison, compare_files
from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.json_file import read_json
from instseg.evaluation.lvis import LvisScores, evaluate_lvis
from instseg.evaluation.params import IOU_TYPES, CocoParams
from instseg.evaluation.per_image import score_slices
from instseg.evaluation.report import (
    Writable,
    category_table,
    comparison_tables,
    plain_lines,
    slice_table,
    summary_lines,
    write_scores,
)
from instseg.evaluation.results import read_results, write_results
from instseg.evaluation.scores import BootstrapOptions, CocoScores
from instseg.evaluation.slices import read_slices
from instseg.evaluation.tables import Vocabulary
from instseg.evaluation.voc import VocScores, evaluate_voc

_EPILOG = """\
examples:
  eval_coco.py --config configs/demo/mask_rcnn.yaml --weights runs/demo/best.safetensors
  eval_coco.py --gt instances_val2017.json --dt results.json --images val2017/ --report report/
  eval_coco.py --gt instances_val2017.json --compare old.json new.json
"""

_FORMS = "give --config and --weights, or --gt and --dt, or --gt and --compare"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = _parser(prog)
    args = parser.parse_intermixed_args(argv)
    given = {n for n in ("config", "weights", "gt", "dt", "compare") if getattr(args, n)}
    if given not in ({"config", "weights"}, {"gt", "dt"}, {"gt", "compare"}):
        parser.error(_FORMS)
    if "gt" in given and (args.overrides or args.save_results):
        parser.error("key.path=value and --save-results belong to --config and --weights")
    if args.metric != "coco" and (given != {"gt", "dt"} or _not_for_others(args, parser)):
        parser.error(f"--metric {args.metric} takes --gt, --dt, --iou-type bbox segm and --json")
    if "compare" in given and (args.report or args.slices or args.backend):
        parser.error("--report, --slices and --backend belong to a single model, not to --compare")
    if "compare" in given and args.replicates == 0:
        parser.error("--compare needs replicates")
    if args.images and not ("dt" in given and args.report):
        parser.error("--images belongs to --gt and --dt with --report")
    if args.report and args.iou_type == ["boundary"]:
        parser.error("--report explains boxes or masks: add bbox or segm to --iou-type")
    try:
        params, options = _params(args), BootstrapOptions(args.replicates, args.confidence)
    except ValueError as error:
        parser.error(str(error))
    return run(partial(_command, args, params, options))


def _not_for_others(args: argparse.Namespace, parser: argparse.ArgumentParser) -> bool:
    """Whether options are given that only COCO's metric knows."""
    names = "report slices area iou_thresholds max_detections class_agnostic backend images "
    names += "replicates confidence"
    changed = any(getattr(args, name) != parser.get_default(name) for name in names.split())
    return changed or "boundary" in (args.iou_type or ())


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="COCO's twelve numbers for boxes and masks with confidence intervals, AP for "
        "each category, comparisons and reports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("a trained model")
    model.add_argument("--config", type=Path, help="YAML file whose data.val is scored")
    model.add_argument("--weights", type=Path, help="weights of tools/train_net.py")
    model.add_argument("--save-results", type=Path, metavar="FILE", help="write COCO results there")
    model.add_argument("overrides", nargs="*", metavar="key.path=value", help="change the config")
    files = parser.add_argument_group("result files")
    files.add_argument("--gt", type=Path, help="COCO annotations")
    files.add_argument("--dt", type=Path, help="COCO results")
    files.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two of them")
    files.add_argument("--images", type=Path, metavar="DIR", help="the images, for --report")
    files.add_argument("--metric", choices=["coco", "voc", "lvis"], default="coco")

    how = parser.add_argument_group("scoring (the defaults are COCO's)")
    how.add_argument("--iou-type", nargs="+", choices=IOU_TYPES, help="default: all there is")
    how.add_argument("--iou-thresholds", nargs="+", type=float, metavar="IOU")
    how.add_argument("--max-detections", nargs="+", type=int, metavar="N")
    how.add_argument(
        "--area", nargs=3, action="append", metavar=("NAME", "LOW", "HIGH"), default=[],
        help="a range of object area in pixels, in place of COCO's; may be repeated",
    )  # fmt: skip
    how.add_argument("--class-agnostic", action="store_true", help="all categories as one")
    how.add_argument("--backend", choices=BACKENDS, help="default: the config's, or instseg")
    how.add_argument("--replicates", type=int, default=200, help="of the bootstrap; 0: none")
    how.add_argument("--confidence", type=float, default=0.95, help="of the intervals")

    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    output.add_argument(
        "--slices", type=Path, metavar="FILE", help='JSON of image ids by name: {"night": [1, 7]}'
    )
    output.add_argument("--report", type=Path, metavar="DIR", help="write an HTML report there")
    return parser


def _params(args: argparse.Namespace) -> CocoParams:
    params = CocoParams()
    if args.iou_thresholds:
        params = replace(params, iou_thresholds=tuple(args.iou_thresholds))
    if args.max_detections:
        params = replace(params, max_detections=tuple(args.max_detections))
    if args.area:
        own = {name: (float(low), float(high)) for name, low, high in args.area}
        params = replace(params, areas={"all": params.areas["all"]} | own)
    return replace(params, class_agnostic=args.class_agnostic)


def _command(args: argparse.Namespace, params: CocoParams, options: BootstrapOptions) -> int:
    scores: Mapping[str, Writable]
    if args.compare:
        scores = _compare(args, params, options)
    elif args.metric != "coco":
        scores = _other_metric(args)
    else:
        scores = _coco(args, params, options)
    if args.json is not None and scores:
        write_scores(scores, args.json)
    return 0


def _coco(
    args: argparse.Namespace, params: CocoParams, options: BootstrapOptions
) -> dict[str, CocoScores]:
    slices = {} if args.slices is None else read_slices(args.slices)
    scored = (_score_model if args.gt is None else _score_files)(args, params, options)
    if not scored.is_writer:
        return {}
    show(scored.scores)
    truth, records = scored.ground_truth, scored.records
    if args.save_results is not None:
        write_results(records, args.save_results)
    scores = scored.scores
    for iou_type in scores if slices else ():
        matches = match_records(truth, records, iou_type, params)
        parts = score_slices(matches, scores[iou_type], Vocabulary.of(truth), slices, options)
        scores[iou_type] = replace(scores[iou_type], slices=parts)
        Console().print(slice_table(scores[iou_type]))
    if args.report is not None:
        from instseg.cli.report import write_evaluation_report

        page = write_evaluation_report(
            args.report,
            truth,
            records,
            scored.scores,
            images=scored.images,
            title=(args.dt or args.weights).name,
            ground_truth_name=f"{args.gt or args.config}",
            results_name=f"{args.dt or args.weights}",
            options=options,
        )
        print(f"report: {page}")
    return scores


def _keeps_records(args: argparse.Namespace) -> bool:
    return bool(args.report or args.slices or args.save_results)


def _score_model(args: argparse.Namespace, params: CocoParams, options: BootstrapOptions) -> Scored:
    # Imported late: who scores files need not wait for the libraries of models.
    from instseg.cli.evaluate_model import evaluate_model

    keep = _keeps_records(args)
    return evaluate_model(
        args.config, args.weights, _overrides(args), params, options, keep_records=keep
    )


def _score_files(args: argparse.Namespace, params: CocoParams, options: BootstrapOptions) -> Scored:
    backend = args.backend or "instseg"
    if not _keeps_records(args):
        return Scored(
            evaluate_files(
                args.gt, args.dt, args.iou_type, backend, params=params, intervals=options
            )
        )
    truth, (records,), kinds = read_files(args.gt, [args.dt], args.iou_type)
    images = None
    if args.images is not None:
        images = {i["id"]: args.images / i.get("file_name", "") for i in truth["images"]}
    scores = score(truth, records, kinds, backend, params, options)
    return Scored(scores, truth, records, images)


def _overrides(args: argparse.Namespace) -> list[str]:
    overrides = list(args.overrides)
    if args.iou_type:
        overrides.append(f"evaluation.iou_types=[{', '.join(args.iou_type)}]")
    if args.backend:
        overrides.append(f"evaluation.backend={args.backend}")
    return overrides


def _compare(
    args: argparse.Namespace, params: CocoParams, options: BootstrapOptions
) -> dict[str, Comparison]:
    a, b = args.compare
    comparisons = compare_files(args.gt, a, b, args.iou_type, params, options)
    console = Console()
    console.print(f"A: {a}\nB: {b}", highlight=False, markup=False)
    for comparison in comparisons.values():
        for table in comparison_tables(comparison):
            console.print(table)
    return comparisons


def _other_metric(args: argparse.Namespace) -> Mapping[str, Writable]:
    truth, records = read_json(args.gt, GroundTruthError), read_results(args.dt)
    iou_types = args.iou_type or ("bbox",)
    scores: Mapping[str, VocScores | LvisScores]
    if args.metric == "voc":
        scores = evaluate_voc(truth, records, iou_types)
    else:
        scores = evaluate_lvis(truth, records, iou_types)
    for line in plain_lines(scores):
        Console().print(line, highlight=False, markup=False)
    return scores


def show(scores: Mapping[str, CocoScores]) -> None:
    """Print COCO's lines for each IoU type, and the categories' table."""
    console = Console()
    for kind in scores:
        console.print(
            f"{kind}: {scores[kind].detections} detections in {scores[kind].images} images"
        )
        for line in summary_lines({kind: scores[kind]}):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(category_table(scores))
