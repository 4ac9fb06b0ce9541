"""The confusion matrix as a figure, and the pairs of categories that it mixes up the most."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from instseg.visualization.report.style import LINE, SERIES, Drawing, new_figure, short_name

Counts = npt.NDArray[np.int64]

LARGEST = 80
"""Most categories that a figure shows."""

_LARGEST_WITH_NUMBERS = 16
_CELL = 0.165  # inches: what a label of 8 points needs


class Confusion(NamedTuple):
    """The number of ``objects`` of ``truth`` that a detection calls ``predicted``."""

    truth: str
    predicted: str
    objects: int


def draw_confusion(kind: str, confusion: dict[str, Any]) -> Drawing:
    """Which share of each true category is detected as which; the last label is the background.

    More than `LARGEST` categories are cut to those that are mixed up the most.
    """
    names, counts = _most_confused(confusion["labels"], np.array(confusion["matrix"], np.int64))
    small = len(names) <= _LARGEST_WITH_NUMBERS
    side = max(3.4, (0.46 if small else _CELL) * len(names))
    figure = new_figure(side + 1.6, side + 1.3)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The colour's opacity carries the share, so that the page's own background shows through.
    image = np.full((*shares.shape, 4), [*to_rgb(SERIES[0]), 0.0])
    image[..., 3] = np.where(counts > 0, 0.06 + 0.54 * shares, 0)
    axes.imshow((255 * image).round().astype(np.uint8), interpolation="none")
    places = np.arange(len(names))
    labels = [short_name(name) for name in names]
    size = 9 if small else 8
    axes.set_xticks(places, labels, rotation=90, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color=LINE, linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set(visible=True, color=LINE)
    if small:
        _write_counts(axes, counts)
    diagonal = int(np.trace(counts[:-1, :-1]))
    total = int(counts[:-1].sum())
    alt = f"Confusion matrix of {kind}: {diagonal} of {total} objects have their own category."
    return Drawing(f"{kind}_confusion", alt, figure)


def most_confused_pairs(confusion: dict[str, Any], limit: int = 12) -> list[Confusion]:
    """The pairs of two different categories with the highest counts, background left out."""
    names = confusion["labels"]
    counts = np.array(confusion["matrix"], np.int64)[:-1, :-1].copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:limit]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [Confusion(names[t], names[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]


def _most_confused(names: list[str], counts: Counts) -> tuple[list[str], Counts]:
    if len(names) <= LARGEST + 1:
        return names, counts
    mixed = counts + counts.T
    np.fill_diagonal(mixed, 0)
    # Among equals the first; in the order of the categories; with the background.
    chosen = np.argsort(-mixed[:-1].sum(1), kind="stable")[:LARGEST]
    rows = np.append(np.sort(chosen), len(names) - 1)
    return [names[row] for row in rows], counts[np.ix_(rows, rows)]


def _write_counts(axes: Axes, counts: Counts) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            size = 9 if count < 1000 else 7
            axes.text(column, row, str(count), ha="center", va="center", fontsize=size)
