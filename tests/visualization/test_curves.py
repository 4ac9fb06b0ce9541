import json

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from instseg.visualization import plot_curves
from instseg.visualization.curves import _plot_accuracy, _plot_losses, _series, _smooth


def train_row(step: int, **values: object) -> dict[str, object]:
    losses = {"loss": 2.0 / step, "loss_mask": 0.5 / step, "loss_box_reg": 1.5 / step}
    return {"kind": "train", "step": step, "epoch": 0, "lr": 1e-3, **losses, **values}


def eval_row(step: int, **values: object) -> dict[str, object]:
    return {"kind": "eval", "step": step, "epoch": 0, "bbox/AP": 0.3, "segm/AP": 0.2, **values}


ROWS = [train_row(1), train_row(2), eval_row(2), train_row(3), eval_row(3)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "rows",
    [ROWS, ROWS[:1], [eval_row(4)], [train_row(1, loss=float("nan")), train_row(2)]],
    ids=["all", "one", "only evaluation", "not finite"],
)
def test_a_picture_is_made(tmp_path, rows):
    output = tmp_path / "plots" / "curves.png"
    plot_curves(write(tmp_path / "metrics.jsonl", rows), output)
    image = cv2.imread(str(output))
    assert min(image.shape[:2]) > 500
    assert image.std() > 5
    # Lines of one colour at least: not only axes and text.
    spread = image.max(axis=2).astype(int) - image.min(axis=2)
    assert np.count_nonzero(spread > 100) > 10
    assert [p.name for p in output.parent.iterdir()] == ["curves.png"]


def test_blank_lines_are_no_rows(tmp_path):
    text = "\n" + json.dumps(train_row(1)) + "\n\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_losses_are_drawn_raw_and_smoothed():
    axes = Figure().subplots()
    _plot_losses(axes, _series([train_row(2), train_row(1, loss=float("inf"))]))
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {"total", "mask", "box_reg"} <= set(lines)
    assert len(axes.get_lines()) == 6
    np.testing.assert_array_equal(lines["total"].get_xydata(), [[2, 1.0]])
    np.testing.assert_array_equal(lines["mask"].get_xydata(), [[1, 0.5], [2, 0.25]])


def test_undefined_and_other_scores_are_not_drawn():
    rows = [
        eval_row(1, **{"bbox/AP50": -1.0, "bbox/APs": 0.1, "bbox/AR100": 0.5}),
        eval_row(2, **{"bbox/AP50": 0.6}),
    ]
    axes = Figure().subplots()
    _plot_accuracy(axes, _series(rows))
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {
        "bbox AP": [[1, 0.3], [2, 0.3]],
        "bbox AP50": [[2, 0.6]],
        "segm AP": [[1, 0.2], [2, 0.2]],
    }


@pytest.mark.parametrize("length", [1, 39, 40, 400])
def test_smoothing_is_the_mean_of_the_window(length):
    values = np.random.default_rng(0).random(length)
    half = length // 40
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(length)]
    np.testing.assert_allclose(_smooth(values), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "train", "st', "not a JSON object"),
        ("[1, 2]", r"expected a JSON object, got '\[1, 2\]'"),
        ('{"step": 1}', "'kind' must be one of .* got None"),
        ('{"kind": "test", "step": 1}', "'kind' must be one of .* got 'test'"),
        ('{"kind": "train"}', "'step' must be a number, got None"),
        ('{"kind": "train", "step": "7"}', "'step' must be a number, got '7'"),
        ('{"kind": "train", "step": NaN}', "'step' must be a number, got nan"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(train_row(1)) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"metrics.jsonl, line 2: {message}"):
        plot_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_bytes_that_are_not_text_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\x80\xff\x00")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not a JSON object"):
        plot_curves(path, tmp_path / "curves.png")


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no rows"):
        plot_curves(write(tmp_path / "metrics.jsonl", []), tmp_path / "curves.png")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        plot_curves(tmp_path / "absent.jsonl", tmp_path / "curves.png")
