"""How the report's figures look, and how they become PNG files, SVG files and parts of a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#6e7781"
LINE = "#d1d9e0"
PAPER = "#ffffff"
SERIES = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#9a6700")

# What each colour is called in report.css, where it has a light and a dark value.
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "none"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, start=1)
}
DASH = "\N{EN DASH}"
"""For a missing value, and between the ends of a range."""

_LONGEST_NAME = 28

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.size": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    # A category may be called "$x$".
    "text.parse_math": False,
    # Text stays text: small, and in the font of the page.
    "svg.fonttype": "none",
    "svg.hashsalt": "instseg",
}


@dataclass(frozen=True)
class Drawing:
    """A figure with what a reader who cannot see it is told.

    Args:
        name: the files' name without ending, and the prefix of ids in the page: letters and ``_``.
        alt: what the figure shows, in a sentence or two.
        figure: it.
    """

    name: str
    alt: str
    figure: Figure


@contextmanager
def report_style() -> Iterator[None]:
    """Figures made, and saved, inside look as the report's do."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The SVG holds the text itself, and a browser has the script that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window system."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def percent_axis(axis: Axes, which: Literal["x", "y", "both"]) -> None:
    """Let an axis of fractions run from 0 to 100 percent."""
    for name in "xy" if which == "both" else which:
        axis.set(**{f"{name}lim": (0, 1)})
        part = getattr(axis, f"{name}axis")
        part.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])


def short_name(name: str) -> str:
    """``name`` as a label: one line, cut where it is long, without what XML cannot hold."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"


def to_file(drawing: Drawing, kind: Literal["png", "svg"]) -> bytes:
    """The figure as a file's content, the same bytes every time."""
    buffer = io.BytesIO()
    options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
    drawing.figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def to_inline(drawing: Drawing, svg: bytes) -> str:
    """The SVG file as an element of the page.

    It loses its own colours to the page's variables, so that it fits a light and a dark page, and
    its ids get the drawing's name, since those of all figures share one document.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    for noise in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        text = re.sub(noise, "", text, flags=re.DOTALL)
    text = re.sub(r'(?<= id=")', f"{drawing.name}-", text)
    text = re.sub(r'(?<=url\(#)|(?<=href="#)', f"{drawing.name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": {variable}")
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None, "matplotlib writes a viewBox"
    return (
        f'<svg {box[0]} style="--width: {float(box[1]):.0f}pt" role="img" '
        f'aria-label="{escape(drawing.alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
