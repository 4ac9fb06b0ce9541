"""Curves of a training run: its losses, learning rate and accuracy over the steps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from instseg.visualization.draw import PALETTE, save_png

Row = dict[str, Any]
Points = list[tuple[float, float]]
"""(step, value) pairs."""

_KINDS = ("train", "eval")
_ACCURACY_STYLES = {"AP": "-", "AP50": "--", "AP75": ":"}
_COLOURS = ["#{:02x}{:02x}{:02x}".format(*PALETTE[i]) for i in (6, 4, 2, 0, 5, 1, 7, 10, 9, 11)]


def plot_curves(metrics_file: Path, output: Path) -> None:
    """Draw a run's ``metrics.jsonl`` as one PNG.

    Three panels share the axis of steps: the total loss and its parts (smoothed, over the raw
    values), the learning rate, and AP, AP50 and AP75 of every task. Values that are not finite are
    left out, as are the -1 that COCO gives where an AP is undefined.

    Args:
        metrics_file: one JSON object a line, each with ``kind`` ("train" or "eval") and ``step``.
            Rows of training have ``loss``, its parts as ``loss_*``, and ``lr``; rows of evaluation
            have scores such as ``bbox/AP``.
        output: the PNG to write; folders are made.

    Raises:
        ValueError: the file has no rows, or a line is malformed; the message names file and line.
        OSError: the file cannot be read.
    """
    rows = _read(metrics_file)
    train = _series([row for row in rows if row["kind"] == "train"])
    scores = _series([row for row in rows if row["kind"] == "eval"])

    figure = Figure(figsize=(9, 10), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 3])
    _plot_losses(axes[0], train)
    _plot_learning_rate(axes[1], train)
    _plot_accuracy(axes[2], scores)
    axes[2].set_xlabel("step")
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    save_png(np.asarray(canvas.buffer_rgba())[..., :3].copy(), output)


def _read(path: Path) -> list[Row]:
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
        if row.get("kind") not in _KINDS:
            raise ValueError(
                f"{path}, line {number}: 'kind' must be one of {_KINDS}, got {row.get('kind')!r}"
            )
        if not _is_number(row.get("step")):
            raise ValueError(
                f"{path}, line {number}: 'step' must be a number, got {row.get('step')!r}"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows; a run writes them as it trains")
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _series(rows: list[Row]) -> dict[str, Points]:
    """The finite numbers of the rows, by key, in the order of steps."""
    series: dict[str, Points] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["step"]):
        for key, value in row.items():
            if _is_number(value):
                series[key].append((row["step"], value))
    return dict(series)


def _plot_losses(axes: Axes, train: dict[str, Points]) -> None:
    axes.set_ylabel("loss")
    names = [key for key in train if key == "loss" or key.startswith("loss_")]
    for i, name in enumerate(sorted(names)):
        steps, values = np.array(train[name], np.float64).T
        colour = "black" if name == "loss" else _COLOURS[i % len(_COLOURS)]
        label = "total" if name == "loss" else name.removeprefix("loss_")
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=colour, label=label)
    if names:
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def _plot_learning_rate(axes: Axes, train: dict[str, Points]) -> None:
    axes.set_ylabel("learning rate")
    if "lr" in train:
        axes.plot(*np.array(train["lr"], np.float64).T, color="black")
        axes.set_ylim(bottom=0)


def _plot_accuracy(axes: Axes, scores: dict[str, Points]) -> None:
    axes.set_ylabel("average precision")
    axes.set_ylim(0, 1)
    tasks: dict[str, str] = {}
    for key in sorted(scores):
        task, _, metric = key.partition("/")
        points = [(step, value) for step, value in scores[key] if value >= 0]
        if metric not in _ACCURACY_STYLES or not points:
            continue
        colour = tasks.setdefault(task, _COLOURS[len(tasks) % len(_COLOURS)])
        axes.plot(
            *np.array(points, np.float64).T,
            _ACCURACY_STYLES[metric],
            color=colour,
            marker="o",
            markersize=3,
            label=f"{task} {metric}",
        )
    if tasks:
        axes.legend(frameon=False, ncols=len(tasks))
    else:
        axes.text(0.5, 0.5, "no evaluation yet", ha="center", transform=axes.transAxes)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a centred window of a twentieth of the series, shorter at its ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    smooth: npt.NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return smooth
