"""The report's figures of one IoU type: what the numbers of its analysis look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.visualization.report.confusion import draw_confusion
from instseg.visualization.report.style import (
    DASH,
    INK,
    LINE,
    MUTED,
    SERIES,
    Drawing,
    new_figure,
    percent_axis,
    short_name,
)

Section = dict[str, Any]
Array = npt.NDArray[np.float64]

_DASHES = ("-", "--", "-.", ":")


def draw_figures(kind: str, section: Section) -> dict[str, Drawing]:
    """Every figure of an IoU type, by name; call it within `report_style`.

    Args:
        kind: what the type is called: ``box``, ``mask``, ``boundary``.
        section: the document's part of that type.
    """
    return {
        "precision_recall": draw_precision_recall(kind, section["curves"]),
        "errors": draw_errors(kind, section["errors"]),
        "calibration": draw_calibration(kind, section["calibration"]),
        "confusion": draw_confusion(kind, section["confusion"]),
        "sizes": draw_sizes(kind, section["sizes"], section["crowding"]),
    }


def draw_precision_recall(kind: str, curves: Section) -> Drawing:
    """Precision over recall: the mean over categories, and each category at IoU 0.50."""
    figure = new_figure(9.2, 4.1)
    left, right = figure.subplots(1, 2, sharey=True)
    recall = _values(curves["recall"])
    means = {iou: _values(curve) for iou, curve in curves["mean"].items()}
    for i, (iou, curve) in enumerate(means.items()):
        style = _DASHES[i % len(_DASHES)]
        left.plot(recall, curve, style, linewidth=1.8, label=f"IoU {iou.replace(':', DASH)}")
    known = {name: _values(curve) for name, curve in curves["categories"].items()}
    known = {name: curve for name, curve in known.items() if np.isfinite(curve).any()}
    worst = sorted(known, key=lambda name: float(np.nanmean(known[name])))[: len(SERIES)]
    others = [name for name in known if name not in worst]
    for i, name in enumerate(others):
        label = "other categories" if i == 0 else None
        right.plot(recall, known[name], color=MUTED, alpha=0.35, linewidth=0.8, label=label)
    for name, colour in zip(worst, SERIES, strict=False):
        right.plot(recall, known[name], color=colour, linewidth=1.5, label=short_name(name))
    title = "Categories at IoU 0.50" + (", the lowest in colour" if others else "")
    for axes, heading in ((left, "Mean over categories"), (right, title)):
        percent_axis(axes, "both")
        axes.set(title=heading, xlabel="recall (%)")
        if axes.lines:
            axes.legend(loc="lower left", fontsize=8.5)
    left.set_ylabel("precision (%)")
    areas = [
        f"{100 * np.nanmean(curve):.1f} % at IoU {iou}"
        for iou, curve in means.items()
        if np.isfinite(curve).any()
    ]
    alt = f"Precision over recall of {kind}; mean precision: {', '.join(areas) or 'none'}."
    return Drawing(f"{kind}_precision_recall", alt, figure)


def draw_errors(kind: str, errors: Section) -> Drawing:
    """How many errors of each type there are, and the AP each type costs."""
    figure = new_figure(9.2, 2.9)
    axes = figure.subplots(1, 2, sharey=True)
    counts = _values([error["count"] for error in errors.values()])
    costs = 100 * _values([error["delta_ap"] for error in errors.values()])
    panels = (
        (axes[0], counts, "Errors", "{:.0f}", SERIES[0]),
        (axes[1], costs, "AP they cost (points)", "{:.1f}", SERIES[1]),
    )
    for panel, values, title, form, colour in panels:
        bars = panel.barh(list(errors), np.nan_to_num(values), color=colour, height=0.62)
        labels = [form.format(v) if np.isfinite(v) else DASH for v in values]
        panel.bar_label(bars, labels, padding=3)
        shown = np.nan_to_num(values)
        # AP may also fall where errors of one type are mended.
        low, high = 1.15 * min(0, shown.min()), 1.15 * max(1e-9, shown.max())
        panel.set(title=title, xlim=(1.4 * low, high))
        panel.grid(visible=False)
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
        panel.tick_params(length=0)
    axes[0].invert_yaxis()
    parts = [f"{name} {count:.0f}" for name, count in zip(errors, counts, strict=True)]
    return Drawing(f"{kind}_errors", f"Errors of {kind} by type: {', '.join(parts)}.", figure)


def draw_calibration(kind: str, calibration: Section) -> Drawing:
    """How often detections of a score are right, over how many detections have that score."""
    figure = new_figure(5.6, 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration["bins"]
    used = [part for part in bins if part["count"] > 0]
    for parts, axes, key in ((used, upper, "accuracy"), (bins, lower, "count")):
        edges = _values([part["low"] for part in parts])
        widths = _values([part["high"] for part in parts]) - edges
        heights = _values([part[key] for part in parts])
        axes.bar(edges, heights, widths, align="edge", color=SERIES[0], alpha=0.55, edgecolor=INK)
    upper.plot([0, 1], [0, 1], "--", color=MUTED, label="perfectly calibrated")
    upper.plot(
        _values([part["confidence"] for part in used]),
        _values([part["accuracy"] for part in used]),
        "o",
        color=SERIES[1],
        label="mean score of the bin",
    )
    percent_axis(upper, "both")
    upper.set_ylabel("correct (%)")
    upper.legend(loc="upper left")
    lower.set(xlabel="score (%)", ylabel="detections")
    lower.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    gap = "unknown" if calibration["ece"] is None else f"{100 * calibration['ece']:.1f} points"
    alt = f"Share of correct {kind} detections over their score; expected calibration error {gap}."
    return Drawing(f"{kind}_calibration", alt, figure)


def draw_sizes(kind: str, sizes: list[Section], crowding: list[Section]) -> Drawing:
    """Which share of the objects is found, by their size and by how many an image holds."""
    figure = new_figure(9.2, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, groups, title in (
        (panels[0], sizes, "By size"),
        (panels[1], crowding, "By objects in the image"),
    ):
        recalls = _values([group["recall"] for group in groups])
        names = [str(group["name"]).removesuffix(" in the image") for group in groups]
        labels = [
            f"{short_name(name)}\n{group['found']} / {group['objects']}"
            for name, group in zip(names, groups, strict=True)
        ]
        places = np.arange(len(groups))
        axes.bar(places, np.nan_to_num(recalls), 0.6, color=SERIES[0], alpha=0.55, label="recall")
        percent_axis(axes, "y")
        axes.set(title=title)
        axes.set_xticks(places, labels)
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
    panels[0].set_ylabel("objects found (%)")
    precisions = _values([group["AP"] for group in sizes])
    panels[0].plot(
        np.arange(len(sizes)),
        precisions,
        "D",
        color=SERIES[1],
        markeredgecolor=LINE,
        label="AP at IoU 0.50",
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    parts = [f"{group['name']}: {group['found']} of {group['objects']}" for group in sizes]
    alt = f"Share of objects found by {kind}, by size and crowding. {'; '.join(parts)}."
    return Drawing(f"{kind}_sizes", alt, figure)


def _values(numbers: list[float | None]) -> Array:
    """An array with NaN where a value is missing: None, or COCO's -1."""
    values = np.array([np.nan if n is None else n for n in numbers], np.float64)
    return np.where(values == -1, np.nan, values)
