import cv2
import numpy as np
import pytest
import torch

from instseg.ops import rle
from instseg.structures import BitMasks, Instances, RoIMasks, SparseMasks
from instseg.visualization import draw_instances, save_png, side_by_side
from instseg.visualization.draw import PALETTE, _readable_on

SIZE = (120, 160)
BOX = [40, 50, 100, 90]
NAMES = ["cat", "dog"]


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def box_mask(box=BOX, size=SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def masks_of(kind: str):
    x1, y1, x2, y2 = BOX
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)
    return {
        "polygons": SparseMasks([[corners]], SIZE, SIZE),
        "rle": SparseMasks([rle.encode(box_mask())], SIZE, SIZE),
        "bits": BitMasks(torch.from_numpy(box_mask())[None]),
        "roi": RoIMasks(torch.ones(1, 28, 28)),
        "none": None,
    }[kind]


def instances(masks=None, *, boxes=(BOX,), **fields) -> Instances:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Instances(SIZE, torch.tensor(boxes).float(), labels, masks=masks, **fields)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=2)


@pytest.mark.parametrize("kind", ["polygons", "rle", "bits", "roi"])
def test_the_mask_is_tinted_and_the_rest_untouched(kind):
    image = picture()
    before = image.copy()
    drawn = draw_instances(image, instances(masks_of(kind)), NAMES, opacity=0.5)
    np.testing.assert_array_equal(image, before)
    inner = (slice(55, 85), slice(45, 95))
    expected = (image[inner] * 0.5 + np.array(PALETTE[0]) * 0.5).round()
    np.testing.assert_allclose(drawn[inner], expected, atol=1)
    # Outside, only the outline and the label's plate above the box may differ.
    allowed = box_mask([37, 47, 103, 93]) | box_mask([40, 30, 80, 51])
    assert not changed(drawn, image)[~allowed].any()


def test_without_masks_only_box_and_label_are_drawn():
    image = picture()
    drawn = draw_instances(image, instances(), NAMES)
    difference = changed(drawn, image)
    assert not difference[52:88, 42:98].any()
    # The stroke lies on the outermost pixels of the half-open box.
    for edge in (drawn[89, 40:100], drawn[50:90, 40], drawn[50:90, 99]):
        assert (edge == PALETTE[0]).all()
    assert not difference[91:].any()


def test_a_hole_keeps_its_pixels():
    mask = box_mask() & ~box_mask([60, 60, 80, 80])
    image = picture()
    drawn = draw_instances(image, instances(BitMasks(torch.from_numpy(mask)[None])), NAMES)
    difference = changed(drawn, image)
    assert not difference[64:76, 64:76].any()
    assert difference[52:58, 42:98].mean() > 0.9


def test_scale_enlarges_picture_and_masks():
    image = picture()
    drawn = draw_instances(image, instances(masks_of("bits")), NAMES, scale=3)
    plain = draw_instances(image, Instances.empty(SIZE), NAMES, scale=3)
    assert drawn.shape == plain.shape == (360, 480, 3)
    difference = changed(drawn, plain)
    assert difference[160:260, 130:290].mean() > 0.99
    assert not difference[280:].any()
    assert not difference[:, 310:].any()


@pytest.mark.parametrize("with_masks", [True, False])
def test_no_instances_give_an_equal_copy(with_masks):
    image = picture()
    drawn = draw_instances(image, Instances.empty(SIZE, with_masks=with_masks), NAMES)
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


def test_low_scores_are_left_out():
    boxes = (BOX, [5, 95, 35, 118])
    both = instances(boxes=boxes, scores=torch.tensor([0.9, 0.3]))
    image = picture()
    first = both[[0]]
    np.testing.assert_array_equal(
        draw_instances(image, both, NAMES, score_threshold=0.5),
        draw_instances(image, first, NAMES),
    )
    all_drawn = draw_instances(image, both, NAMES, score_threshold=0.3)
    assert changed(all_drawn, draw_instances(image, first, NAMES))[100:, :35].any()


def test_small_objects_stay_visible_on_large_ones():
    small = [60, 60, 70, 70]
    masks = BitMasks(torch.from_numpy(np.stack([box_mask(small), box_mask()])))
    given = Instances(SIZE, torch.tensor([small, BOX]).float(), torch.tensor([0, 1]), masks=masks)
    drawn = draw_instances(picture(), given, NAMES, opacity=1.0)
    assert tuple(drawn[65, 65]) == PALETTE[0]
    assert tuple(drawn[80, 90]) == PALETTE[1]


def test_colours_by_class_or_by_instance():
    boxes = ([5, 60, 35, 90], [60, 60, 90, 90])
    masks = BitMasks(torch.from_numpy(np.stack([box_mask(b) for b in boxes])))
    given = instances(masks, boxes=boxes)
    centres = ((75, 20), (75, 75))
    by_class = draw_instances(picture(), given, NAMES, opacity=1.0)
    assert [tuple(by_class[c]) for c in centres] == [PALETTE[0], PALETTE[0]]
    by_instance = draw_instances(picture(), given, NAMES, opacity=1.0, color_by="instance")
    assert [tuple(by_instance[c]) for c in centres] == [PALETTE[0], PALETTE[1]]


def test_labels_show_class_score_and_crowd():
    image = np.full((*SIZE, 3), 128, np.uint8)
    variants = [
        draw_instances(image, instances(), NAMES),
        draw_instances(image, instances(), ["cow"]),
        draw_instances(image, instances(scores=torch.tensor([0.5])), NAMES),
        draw_instances(image, instances(scores=torch.tensor([0.6])), NAMES),
        draw_instances(image, instances(is_crowd=torch.tensor([True])), NAMES),
    ]
    for i, first in enumerate(variants):
        for second in variants[i + 1 :]:
            assert changed(first, second)[:50].any()


@pytest.mark.parametrize("box", [[0, 0, 20, 10], [150, 110, 160, 120], [-50, -50, 300, 300]])
def test_boxes_at_and_over_the_border(box):
    image = picture()
    drawn = draw_instances(image, instances(boxes=(box,)), ["a very long class name"])
    assert changed(drawn, image).any()


def test_text_contrast_is_at_least_that_of_wcag_aa():
    def luminance(colour):
        # WCAG 2.2, definition of relative luminance.
        c = np.array(colour) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ np.array([0.2126, 0.7152, 0.0722])

    for colour in PALETTE:
        bright, dark = sorted([luminance(colour), luminance(_readable_on(colour))], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((*SIZE, 3), np.float32), "float32"),
        (np.zeros(SIZE, np.uint8), r"\[120, 160\]"),
        (np.zeros((*SIZE, 4), np.uint8), r"\[120, 160, 4\]"),
        (np.zeros((160, 120, 3), np.uint8), "160 x 120 but .* 120 x 160"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(ValueError, match=message):
        draw_instances(image, instances(), NAMES)


def test_bad_label_and_scale():
    with pytest.raises(ValueError, match="label 0 has no name: there are 0"):
        draw_instances(picture(), instances(), [])
    with pytest.raises(ValueError, match="scale must be at least 1"):
        draw_instances(picture(), instances(), NAMES, scale=0)


def test_side_by_side_holds_every_picture_in_its_place():
    shapes = [[(40, 60), (40, 50)], [(30, 20), (50, 90)]]
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(0, 200, (*s, 3), dtype=np.uint8) for s in row) for row in shapes]
    grid = side_by_side(rows, ["truth", "prediction"])
    corners = {}
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            h, w = image.shape[:2]
            match = cv2.matchTemplate(grid, image, cv2.TM_SQDIFF)
            y, x = np.unravel_index(match.argmin(), match.shape)
            np.testing.assert_array_equal(grid[y : y + h, x : x + w], image)
            corners[i, j] = (y, x)
    assert corners[0, 0][0] == corners[0, 1][0]
    assert corners[0, 0][1] == corners[1, 0][1]
    assert corners[1, 0][0] > corners[0, 0][0] + 40
    assert corners[0, 1][1] > corners[0, 0][1] + 60
    titles = grid[: corners[0, 0][0]]
    assert (titles[:, : corners[0, 1][1]] < 100).any()
    assert (titles[:, corners[0, 1][1] :] < 100).any()


@pytest.mark.parametrize(
    ("rows", "titles", "message"),
    [
        ([], ["a"], "at least one row"),
        ([()], [], "at least one row"),
        ([(np.zeros((5, 5, 3), np.uint8),)], ["a", "b"], "row 0 has 1 pictures for 2 titles"),
    ],
)
def test_bad_grids(rows, titles, message):
    with pytest.raises(ValueError, match=message):
        side_by_side(rows, titles)


def test_save_png_keeps_rgb_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.png"
    save_png(picture(), path)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], picture())
    assert [p.name for p in path.parent.iterdir()] == ["b.png"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def full(self, data):
        self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        save_png(picture(), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
