"""The report's figures: what they show, and how they fit into the page."""

import re

import numpy as np
import pytest
from defusedxml import ElementTree

from instseg.visualization.report.confusion import draw_confusion, most_confused_pairs
from instseg.visualization.report.figures import (
    draw_calibration,
    draw_errors,
    draw_figures,
    draw_precision_recall,
    draw_sizes,
)
from instseg.visualization.report.style import report_style, to_file, to_inline
from tests.visualization.report_document import FIGURES, make_document


@pytest.fixture(scope="module")
def document():
    return make_document()


def test_labels_of_figures_are_plain_text():
    names = ("$x$", "a" * 60, "猫", "line\nbreak\x00", "<b>&", "\ud83d")
    curves = make_document(names)["iou_types"]["bbox"]["curves"]
    with report_style():
        drawing = draw_precision_recall("box", curves)
        svg = to_file(drawing, "svg")
        to_file(drawing, "png")
    root = ElementTree.fromstring(svg, forbid_dtd=False)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    # The fifth name is the one without ground truth.
    expected = ["$x$", "a" * 27 + "…", "猫", "line\ufffdbreak\ufffd", "\ufffd"]
    assert set(expected) <= set(texts)
    assert "<b>&" not in texts


def test_figures_of_nothing_are_drawn():
    section = make_document(("a", "b"), ("bbox",))["iou_types"]["bbox"]
    section["curves"] |= {"mean": {"0.50": [-1.0] * 101}, "categories": {}}
    section["errors"] = {"missed": {"count": 0, "delta_ap": None}}
    for part in section["calibration"]["bins"]:
        part["count"] = 0
    section["calibration"]["ece"] = None
    section["confusion"]["matrix"] = [[0] * 3] * 3
    with report_style():
        drawings = draw_figures("box", section)
        assert set(drawings) == FIGURES
        assert all(to_file(drawing, "svg") for drawing in drawings.values())
    assert "none" in drawings["precision_recall"].alt
    assert "unknown" in drawings["calibration"].alt


def test_bars_show_counts_and_what_ap_mending_wins_or_loses():
    with report_style():
        errors = {
            "both": {"count": 4, "delta_ap": 0.021},
            "missed": {"count": 0, "delta_ap": -0.01},
        }
        axes = draw_errors("box", errors).figure.axes
    assert [[bar.get_width() for bar in part.patches] for part in axes] == [
        [4, 0],
        pytest.approx([2.1, -1.0]),
    ]
    assert [text.get_text() for part in axes for text in part.texts] == ["4", "0", "2.1", "-1.0"]
    assert axes[1].get_xlim()[0] < -1


def test_bars_of_size_and_crowding_are_recalls(document):
    section = document["iou_types"]["bbox"]
    with report_style():
        left, right = draw_sizes("box", section["sizes"], section["crowding"]).figure.axes
    assert [bar.get_height() for bar in left.patches] == [0, 330 / 503, 301 / 350]
    assert [label.get_text() for label in left.get_xticklabels()] == [
        "small\n0 / 0",
        "medium\n330 / 503",
        "large\n301 / 350",
    ]
    assert [bar.get_height() for bar in right.patches] == [0.9, 0.855, 0.75, 0.6]
    assert left.lines[0].get_ydata()[1:].tolist() == [0.52, 0.71]


def test_calibration_bars_leave_out_empty_bins(document):
    calibration = document["iou_types"]["bbox"]["calibration"]
    with report_style():
        upper, lower = draw_calibration("box", calibration).figure.axes
    used = [part for i, part in enumerate(calibration["bins"]) if i != 6]
    assert [bar.get_height() for bar in upper.patches] == [part["accuracy"] for part in used]
    assert [bar.get_x() for bar in upper.patches] == [part["low"] for part in used]
    assert [bar.get_height() for bar in lower.patches] == [
        part["count"] for part in calibration["bins"]
    ]


def test_curves_are_drawn_as_they_are(document):
    curves = document["iou_types"]["bbox"]["curves"]
    with report_style():
        left, right = draw_precision_recall("box", curves).figure.axes
    for line, curve in zip(left.lines, curves["mean"].values(), strict=True):
        assert line.get_xydata().tolist() == np.column_stack([curves["recall"], curve]).tolist()
    means = {name: np.mean(curve) for name, curve in curves["categories"].items()}
    del means["debris"]
    coloured = sorted(means, key=means.get)[:6]
    assert [line.get_label() for line in right.lines] == ["other categories", *coloured]


def test_inline_figures_take_the_pages_colours(document):
    with report_style():
        drawing = draw_precision_recall("box", document["iou_types"]["bbox"]["curves"])
        first, second = to_file(drawing, "svg"), to_file(drawing, "svg")
    assert first == second
    inline = to_inline(drawing, first)
    assert "var(--series-1)" in inline
    assert "var(--ink)" in inline
    assert re.search(r": #[0-9a-f]{6}", inline) is None
    assert {i.split("-")[0] for i in re.findall(r' id="([^"]*)"', inline)} == {
        "box_precision_recall"
    }


def test_confused_pairs_are_the_largest_counts_off_the_diagonal():
    labels = ["a", "b", "c", "background"]
    matrix = [[9, 2, 0, 50], [5, 9, 1, 0], [0, 0, 9, 7], [60, 8, 0, 0]]
    pairs = most_confused_pairs({"labels": labels, "matrix": matrix})
    assert pairs == [("b", "a", 5), ("a", "b", 2), ("b", "c", 1)]
    assert most_confused_pairs({"labels": labels, "matrix": matrix}, limit=1) == [("b", "a", 5)]


def test_confusion_of_very_many_categories_is_cut_to_the_mixed_up_ones():
    count = 300
    matrix = np.diag([100] * count + [0])
    chosen = list(range(5, 245, 3))
    assert len(chosen) == 80
    for a, b in zip(chosen[::2], chosen[1::2], strict=True):
        matrix[a, b] = 3
    labels = [*(f"c{i}" for i in range(count)), "background"]
    with report_style():
        drawing = draw_confusion("box", {"labels": labels, "matrix": matrix.tolist()})
    shown = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert shown == [*(f"c{i}" for i in chosen), "background"]
    assert drawing.alt.endswith("8000 of 8120 objects have their own category.")
