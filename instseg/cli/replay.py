"""`instseg replay`: repeat a training step whose loss or gradient was not finite."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from instseg.cli.common import run
from instseg.config.build import find_device
from instseg.config.trained import load_trained
from instseg.engine.amp import Amp
from instseg.engine.black_box import set_modes
from instseg.engine.black_box_file import WEIGHTS, Report, StoredBatch, load_black_box
from instseg.engine.module_statistics import Examination, ModuleRecord, Statistics, examine
from instseg.engine.rng import seed_everything

_EPILOG = """\
examples:
  replay.py runs/a/black_box/step-000123
  replay.py runs/a/black_box/step-000123 --device cpu --anomaly
  replay.py runs/a/black_box/step-000123 --float32

exit status: 0 the losses are those of the step, 1 they are not, 2 the folder is no black box
"""
_FINITE, _BAD = 3, 12
"""Rows of a table at most: the last finite ones, and the first that are not."""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Repeat a training step whose loss or gradient was not finite, and show in "
        "which modules the values leave the finite range.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the black box, RUN/black_box/step-000123")
    parser.add_argument("--device", help="such as cuda or cpu [the step's, if it is there]")
    parser.add_argument("--float32", action="store_true", help="without mixed precision")
    parser.add_argument(
        "--anomaly", action="store_true", help="find the operation whose gradient is NaN (slow)"
    )
    args = parser.parse_args(argv)
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    report, batches = load_black_box(args.folder)
    device = _device(args.device, report)
    amp = None if args.float32 else report.amp
    loss_scale = 1.0 if amp is None else report.loss_scale
    model = load_trained(args.folder / WEIGHTS).model.to(device)
    set_modes(model, report)
    console = Console()
    _print_head(console, report, device, amp)
    is_equal = True
    before = torch.get_num_threads()
    torch.set_num_threads(report.threads)
    try:
        for stored in batches:
            seed_everything(stored.about.seed)
            scale = loss_scale * stored.about.share
            found = examine(
                model, stored.batch, device=device, amp=amp, scale=scale, anomaly=args.anomaly
            )
            is_equal &= _print_losses(console, stored, found)
            _print_values(console, found)
    finally:
        torch.set_num_threads(before)
    console.print(_verdict(is_equal, report, device, amp))
    return 0 if is_equal else 1


def _device(name: str | None, report: Report) -> torch.device:
    if name is None and report.device == "cpu":
        name = "cpu"
    return find_device(name, "--device")


def _print_head(console: Console, report: Report, device: torch.device, amp: Amp | None) -> None:
    console.print(
        f"step {report.step} (epoch {report.epoch}, lr {report.lr:g}): {report.problem}, gradient "
        f"norm {report.grad_norm:g}",
        highlight=False,
    )
    console.print(
        f"repeated on {device} in {amp or 'float32'} with {report.threads} threads; the step ran "
        f"on {report.device} in {report.amp or 'float32'}, loss scale {report.loss_scale:g}",
        highlight=False,
    )


def _print_losses(console: Console, stored: StoredBatch, found: Examination) -> bool:
    """Print stored and repeated losses; returns whether they are equal to the last bit."""
    about = stored.about
    table = Table("loss", "then", "now", "", box=None)
    is_equal = about.losses.keys() == found.losses.keys()
    for name in about.losses | found.losses:
        then, now = about.losses.get(name, math.nan), found.losses.get(name, math.nan)
        same = then == now or (math.isnan(then) and math.isnan(now))
        is_equal &= same
        table.add_row(name, repr(then), repr(now), "equal" if same else "DIFFERS")
    console.print(f"\nmicro-batch {about.index}, images {about.image_ids}", highlight=False)
    for path in about.paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    console.print(table)
    return is_equal


def _print_values(console: Console, found: Examination) -> None:
    """Print where values stop being finite, on the way forward and on the way back."""
    for finding in found.findings or ["every value is finite"]:
        console.print(finding, highlight=False, soft_wrap=True)
    rows = [(_title(m), m.output) for m in found.modules]
    _print_table(console, "forward: outputs of modules", rows)
    rows = [(_title(m), m.gradient) for m in reversed(found.modules)]
    _print_table(console, "backward: gradients of those outputs", rows)
    parameters = [(p.name, p.gradient) for p in reversed(found.parameters)]
    _print_table(console, "gradients of parameters", parameters)
    if found.anomaly is not None:
        console.print(f"anomaly mode: {found.anomaly}", highlight=False, soft_wrap=True)


def _print_table(
    console: Console, title: str, rows: Sequence[tuple[str, Statistics | None]]
) -> None:
    """Print the first rows that are not finite after the few before; nothing if none is."""
    known = [(name, statistics) for name, statistics in rows if statistics is not None]
    first = next((i for i, (_, statistics) in enumerate(known) if statistics.bad), None)
    if first is None:
        return
    bad = [row for row in known if row[1].bad]
    table = Table("", "values", "NaN", "inf", "least", "greatest", "2-norm", title=title)
    for name, s in known[max(0, first - _FINITE) : first] + bad[:_BAD]:
        figures = [f"{value:.4g}" for value in (s.minimum, s.maximum, s.norm)]
        table.add_row(name, str(s.elements), str(s.nan or ""), str(s.infinite or ""), *figures)
    console.print(table)
    if len(bad) > _BAD:
        console.print(f"and {len(bad) - _BAD} more that are not finite", highlight=False)


def _title(record: ModuleRecord) -> str:
    return f"{record.name or 'the model itself'} ({record.kind})"


def _verdict(is_equal: bool, report: Report, device: torch.device, amp: Amp | None) -> str:
    if is_equal:
        return "\nthe step is repeated: all losses are equal to the last bit"
    if device.type != report.device or amp != report.amp:
        return "\nthe losses differ, as they do on another device or in another precision"
    return "\nthe losses differ: another machine, or versions other than " + ", ".join(
        f"{name} {version}" for name, version in report.versions.items()
    )
