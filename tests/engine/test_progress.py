"""What a person sees."""

import io
import logging

import pytest
from rich.console import Console

from instseg.engine.progress import BarProgress, LineProgress, make_progress

TRAIN = {
    "kind": "train",
    "step": 20,
    "epoch": 2,
    "lr": 0.00125,
    "loss": 1.23456,
    "loss_mask": 0.5,
    "images_per_second": 12.345,
    "data_wait": 0.0712,
}
EVAL = {"kind": "eval", "step": 20, "epoch": 2, "bbox/AP": 0.51234, "segm/AP": float("nan")}


def test_the_terminal_decides() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(make_progress(terminal), BarProgress)
    assert isinstance(make_progress(Console(file=io.StringIO())), LineProgress)


def test_bar_shows_all_figures_in_one_line() -> None:
    screen = io.StringIO()
    with BarProgress(Console(file=screen, force_terminal=True, width=80)) as progress:
        progress.start(10, 100)
        progress.step(TRAIN)
        progress.logged(TRAIN)
        progress.logged(EVAL)
    text = screen.getvalue()
    assert "epoch 2: bbox/AP 0.5123, segm/AP nan" in text
    last = [line for line in text.splitlines() if "20/100" in line][-1]
    for part in ("epoch 2", "20/100", "loss 1.235", "lr 0.00125", "12.3 img/s", "wait 7%"):
        assert part in last
    assert "-:--:--" in last


def test_lines_show_place_figures_and_remaining_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 150.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), LineProgress() as progress:
        progress.start(10, 740)  # ten steps took 50 s, 720 are left: an hour
        progress.step(TRAIN)
        progress.logged(TRAIN)
        progress.logged(EVAL)
    assert caplog.messages == [
        "epoch 2, step 20/740: loss 1.235 lr 0.00125 12.3 img/s wait 7%, ETA 1:00:00",
        "epoch 2, step 20/740: bbox/AP 0.5123, segm/AP nan",
    ]


def test_a_step_without_images_has_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), LineProgress() as progress:
        progress.start(20, 40)
        progress.logged({"kind": "train", "step": 20, "epoch": 1, "lr": 0.5})
    assert caplog.messages == ["epoch 1, step 20/40: lr 0.5"]
