"""Pictures of outcomes: every line and label where it belongs, told apart without colour."""

import itertools

import numpy as np
import pytest

from instseg.ops import rle
from instseg.visualization.evaluation_picture import (
    LARGEST_SCALE,
    LONGEST_SIDE,
    LONGEST_SIDE_OF_DETAIL,
    Outcome,
    Shape,
    draw_outcomes,
)

GRAY = np.full((100, 200, 3), 90, np.uint8)  # drawn four times as large
SCALE = 4
BOX = [50.0, 20.0, 80.0, 40.0]  # x 50 to 130, y 20 to 60


def box(outcome, label="", where=BOX):
    return Shape(outcome, where, None, label)


def mask(outcome, pixels, label=""):
    code = rle.encode(pixels)
    x1, y1, x2, y2 = rle.to_box(code)
    return Shape(outcome, [x1, y1, x2 - x1, y2 - y1], code, label)


def near(picture, colour, tolerance=40):
    return np.abs(picture.astype(int) - colour).max(axis=-1) < tolerance


def share_along_the_top(picture, outcome):
    """How much of the box's upper side has the outcome's colour."""
    line = picture[SCALE * 20 - 1, SCALE * 50 + 8 : SCALE * 130 - 8]
    return near(line, outcome.colour).mean()


def test_a_box_is_drawn_around_what_it_holds():
    picture = draw_outcomes(GRAY, [box(Outcome.FOUND)])
    assert picture.shape == (400, 800, 3)
    assert picture.dtype == np.uint8
    rows, columns = np.nonzero(near(picture, Outcome.FOUND.colour))
    centres = np.array([rows.min(), rows.max(), columns.min(), columns.max()])
    assert np.abs(centres - SCALE * np.array([20, 60, 50, 130])).max() <= 3
    assert (picture[100:220, 220:500] == 90).all()
    assert (GRAY == 90).all()


def test_lines_are_told_apart_without_colour():
    shares = {o: share_along_the_top(draw_outcomes(GRAY, [box(o)]), o) for o in Outcome}
    assert shares[Outcome.FOUND] == shares[Outcome.TRUTH] == 1
    assert 0.4 < shares[Outcome.MISSED] < 0.85
    assert 0.1 < shares[Outcome.FALSE] < shares[Outcome.MISSED] - 0.1


def test_colours_differ_in_brightness_too():
    """Errors and what was found differ by more than hue, for a reader who sees no colour."""
    bright = [np.dot(o.colour, (0.2126, 0.7152, 0.0722)) for o in Outcome]
    assert min(abs(a - b) for a, b in itertools.combinations(bright, 2)) > 25


@pytest.mark.parametrize("background", [0, 90, 255])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_lines_show_on_any_background(background, outcome):
    image = np.full_like(GRAY, background)
    changed = np.abs(draw_outcomes(image, [box(outcome)]).astype(int) - image[0, 0]).max(axis=-1)
    # A line has its own colour and a dark edge; one of them stands out.
    assert (changed > 100).sum() > 150


def test_a_mask_is_outlined_and_lightly_filled_with_its_hole_left_out():
    pixels = np.zeros((100, 200), np.uint8)
    pixels[20:80, 40:120] = 1
    pixels[40:60, 70:90] = 0
    picture = draw_outcomes(GRAY, [mask(Outcome.FALSE, pixels)])
    expected = 0.7 * 90 + 0.3 * np.array(Outcome.FALSE.colour)
    assert picture[SCALE * 30, SCALE * 55] == pytest.approx(expected, abs=1)
    assert (picture[SCALE * 50, SCALE * 80] == 90).all()  # in the hole
    assert (picture[SCALE * 10, SCALE * 20] == 90).all()
    drawn = near(picture, Outcome.FALSE.colour, 25)
    assert drawn[:, SCALE * 40 - 3 : SCALE * 40 + 4].any()
    assert drawn[:, SCALE * 70 - 3 : SCALE * 70 + 4].any()


def test_an_empty_mask_draws_nothing():
    shape = mask(Outcome.FOUND, np.zeros((100, 200), np.uint8), "cat")
    assert (draw_outcomes(GRAY, [shape]) == 90).all()


def test_truth_lies_under_and_errors_lie_above():
    shapes = [box(o) for o in (Outcome.MISSED, Outcome.FOUND, Outcome.TRUTH)]
    picture = draw_outcomes(GRAY, shapes)
    assert share_along_the_top(picture, Outcome.TRUTH) == 0
    assert share_along_the_top(picture, Outcome.MISSED) > 0.4


def plates(picture, outcome):
    """(row, column) of the pixels of an outcome's very colour, most of them its label's."""
    return np.argwhere(near(picture, outcome.colour, 3))


def test_a_label_stands_above_its_box_or_below_where_there_is_no_room():
    above = plates(draw_outcomes(GRAY, [box(Outcome.FOUND, "cat 0.97")]), Outcome.FOUND)
    assert above[:, 0].min() == SCALE * 20 - 17
    at_top = [60.0, 0.0, 60.0, 30.0]
    below = plates(draw_outcomes(GRAY, [box(Outcome.FOUND, "cat 0.97", at_top)]), Outcome.FOUND)
    assert below[:, 0].max() == SCALE * 30 + 16


def test_labels_do_not_hide_each_other_and_found_ones_give_way():
    crowd = [box(Outcome.MISSED, f"object {i} missed", [90, 40, 2, 2]) for i in range(8)]
    everything = [*crowd, box(Outcome.FOUND, "cat 0.97", [90, 40, 2, 2])]
    picture = draw_outcomes(GRAY, everything)
    assert (picture == draw_outcomes(GRAY, [*crowd, box(Outcome.FOUND, "", [90, 40, 2, 2])])).all()
    pair = [box(Outcome.MISSED, "a"), box(Outcome.MISSED, "b")]
    both = draw_outcomes(GRAY, pair)
    for one in pair:
        assert (both != draw_outcomes(GRAY, [box(Outcome.MISSED), one])).any()


@pytest.mark.parametrize("label", ["ein\nVogel", "\ud83d", "猫 0.50", "x" * 500, "\x00"])
def test_any_name_can_be_written(label):
    picture = draw_outcomes(GRAY, [box(Outcome.MISSED, label)])
    assert (picture != draw_outcomes(GRAY, [box(Outcome.MISSED)])).any()


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [
        (100, 200, (400, 800)),
        (3000, 1000, (800, 267)),
        (20, 30, (20 * LARGEST_SCALE, 30 * LARGEST_SCALE)),
        (1, 5000, (1, LONGEST_SIDE)),
    ],
)
def test_pictures_have_about_one_size(height, width, shape):
    image = np.zeros((height, width, 3), np.uint8)
    shapes = [box(Outcome.FALSE, "cat 0.50", [0, 0, width, height])]
    assert draw_outcomes(image, shapes, note="no image file").shape == (*shape, 3)


def test_a_detail_shows_the_box_and_its_surroundings():
    image = np.zeros((100, 200, 3), np.uint8)
    image[40:60, 160:190] = 255
    # Half of 30 pixels on every side: rows 25 to 75, columns 145 to 200, the border.
    detail = draw_outcomes(image, [], around=[160, 40, 30, 20])
    assert detail.shape == (round(50 * LONGEST_SIDE_OF_DETAIL / 55), LONGEST_SIDE_OF_DETAIL, 3)
    scale = LONGEST_SIDE_OF_DETAIL / 55
    assert (detail[int(25 * scale), int(30 * scale)] > 240).all()
    assert (detail[int(5 * scale), int(5 * scale)] < 15).all()
    # What lies outside is neither drawn nor named.
    outside = draw_outcomes(
        image, [box(Outcome.MISSED, "cat", [5, 5, 30, 30])], around=[160, 40, 30, 20]
    )
    assert (outside == detail).all()


def test_boxes_beyond_the_image_are_cut():
    huge = [box(Outcome.FALSE, "cat 0.50", [-1e12, -1e12, 2e12, 2e12])]
    cut = [box(Outcome.FALSE, "cat 0.50", [0, 0, 200, 100])]
    assert (draw_outcomes(GRAY, huge) == draw_outcomes(GRAY, cut)).all()


def test_the_note_stands_in_the_lower_left_corner():
    picture = draw_outcomes(GRAY, [], note="no image file")
    assert (picture[-17:-15, :50] == 255).all()
    assert (picture[:-17] == 90).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\], got float64"):
        draw_outcomes(np.zeros((4, 4, 3)), [])
    small = mask(Outcome.FOUND, np.ones((4, 5), np.uint8), "cat 0.90")
    with pytest.raises(ValueError, match=r"'cat 0.90' is of size \[4, 5\], .* \[100, 200\]"):
        draw_outcomes(GRAY, [small])
    with pytest.raises(ValueError, match="outside of an image of 100 x 200"):
        draw_outcomes(GRAY, [], around=[400, 10, 5, 5])
