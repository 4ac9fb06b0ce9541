"""Simple Copy-Paste: a case worked by hand, and random ones against a loop over pixels."""

import math

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from instseg.data.transforms import SimpleCopyPaste
from instseg.ops import instance_rles, rle
from instseg.structures import AxisTransform, Instances, SparseMasks


def pair(rows: list[str], value: int, crowd: str = ""):
    """An image of one value and the objects drawn in ``rows``: one letter each, label = letter."""
    grid = np.array([list(row) for row in rows])
    letters = sorted(set(grid.ravel()) - {"."})
    masks = [(grid == letter).astype(np.uint8) for letter in letters]
    image = tv_tensors.Image(torch.full((3, *grid.shape), value, dtype=torch.uint8))
    return image, target_of(masks, [ord(x) for x in letters], [x in crowd for x in letters])


def target_of(masks: list[np.ndarray], labels: list[int], crowd: list[bool]):
    size = masks[0].shape
    codes = [rle.encode(m) for m in masks]
    return Instances(
        image_size=size,
        boxes=torch.tensor([rle.to_box(c) for c in codes], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=SparseMasks(codes, size, size),
        is_crowd=torch.tensor(crowd, dtype=torch.bool),
    )


def drawn(target: Instances) -> dict[str, np.ndarray]:
    return {
        chr(label): rle.decode(code)
        for label, code in zip(target.labels.tolist(), instance_rles(target), strict=True)
    }


def mask(rows: list[str]) -> np.ndarray:
    return (np.array([list(row) for row in rows]) != ".").astype(np.uint8)


@pytest.fixture
def paste_all(monkeypatch):
    """Every draw is 0: every object of the donor is pasted."""
    monkeypatch.setattr(torch, "rand", torch.zeros)


@pytest.mark.usefixtures("paste_all")
def test_hand_worked_occlusion():
    base = pair(
        [
            "AAAA....",
            "AAAA....",
            "AAAA..CC",
            "AAAA..CC",
            "......CC",
            ".BB.....",
        ],
        value=10,
        crowd="C",
    )
    donor = pair(
        [
            "........",
            "........",
            "..PPPP..",
            "..PPPP..",
            "..PPPPQ.",
            ".RR.....",
        ],
        value=200,
        crowd="Q",
    )
    image, target = SimpleCopyPaste()(base, [donor])

    # B lies wholly under R and goes; Q is a crowd, which is never pasted.
    assert [chr(x) for x in target.labels.tolist()] == ["A", "C", "P", "R"]
    pasted = mask(["........", "........", "..PPPP..", "..PPPP..", "..PPPP..", ".RR....."])
    assert np.array_equal(image.numpy(), np.broadcast_to(np.where(pasted, 200, 10), (3, 6, 8)))
    assert image.dtype == torch.uint8
    shown = drawn(target)
    expected = {
        "A": ["AAAA....", "AAAA....", "AA......", "AA......", "........", "........"],
        "C": ["........", "........", "......CC", "......CC", "......CC", "........"],
        "P": ["........", "........", "..PPPP..", "..PPPP..", "..PPPP..", "........"],
        "R": ["........", "........", "........", "........", "........", ".RR....."],
    }
    for letter, rows in expected.items():
        assert np.array_equal(shown[letter], mask(rows)), letter
    assert target.boxes.tolist() == [[0, 0, 4, 4], [6, 2, 8, 5], [2, 2, 6, 5], [1, 5, 3, 6]]
    assert target.crowd.tolist() == [False, True, False, False]


@pytest.mark.usefixtures("paste_all")
def test_the_box_shrinks_to_the_visible_part():
    base = pair([".AAAAAA.", ".AAAAAA."], 10)
    donor = pair(["PPPP....", "PPPP...."], 20)
    _, target = SimpleCopyPaste()(base, [donor])
    assert target.boxes.tolist() == [[4, 0, 7, 2], [0, 0, 4, 2]]


@pytest.mark.usefixtures("paste_all")
def test_an_untouched_object_keeps_its_annotated_box():
    image, target = pair(["AA....", "AA....", "......"], 10)
    target.boxes = torch.tensor([[0.25, 0.0, 1.75, 2.0]])
    _, pasted = SimpleCopyPaste()((image, target), [pair(["....PP", "......", "......"], 20)])
    assert pasted.boxes.tolist() == [[0.25, 0, 1.75, 2], [4, 0, 6, 1]]


@pytest.mark.usefixtures("paste_all")
@pytest.mark.parametrize(
    ("min_visibility", "crowd", "kept"),
    [(0.25, "", True), (0.26, "", False), (0.26, "A", True), (0.0, "", True)],
)
def test_what_is_mostly_hidden_goes_unless_it_is_a_crowd(min_visibility, crowd, kept):
    base = pair(["AAAA", "...."], 10, crowd)
    donor = pair([".PPP", "...."], 20)  # leaves a quarter of A
    _, target = SimpleCopyPaste(min_visibility=min_visibility)(base, [donor])
    assert target.labels.tolist() == [ord(x) for x in ("AP" if kept else "P")]


@pytest.mark.usefixtures("paste_all")
@pytest.mark.parametrize("crowd", ["", "A"])
def test_what_is_wholly_hidden_goes_at_any_setting(crowd):
    base, donor = pair(["AAAA"], 10, crowd), pair(["PPPP"], 20)
    _, target = SimpleCopyPaste(min_visibility=0.0)(base, [donor])
    assert target.labels.tolist() == [ord("P")]


@pytest.mark.usefixtures("paste_all")
def test_a_donor_without_objects_to_paste_leaves_the_base_alone():
    base = pair(["AA..", "...."], 10)
    crowd_only = pair(["QQQQ", "...."], 20, "Q")
    nothing = (crowd_only[0], Instances.empty((2, 4), with_masks=True))
    unseen = (nothing[0], target_of([np.zeros((2, 4), np.uint8)], [0], [False]))
    unseen[1].boxes = torch.tensor([[0.0, 0, 2, 2]])  # so thin that its mask has no pixel here
    for donor in (crowd_only, nothing, unseen):
        image, target = SimpleCopyPaste()(base, [donor])
        assert image is base[0]
        assert target is base[1]


@pytest.mark.usefixtures("paste_all")
def test_objects_come_to_a_base_without_any():
    image = tv_tensors.Image(torch.zeros(3, 2, 4, dtype=torch.uint8))
    base = (image, Instances.empty((2, 4), with_masks=True))
    pasted, target = SimpleCopyPaste()(base, [pair(["P...", "P..."], 9)])
    assert target.boxes.tolist() == [[0, 0, 1, 2]]
    assert pasted[0].tolist() == [[9, 0, 0, 0], [9, 0, 0, 0]]


@pytest.mark.usefixtures("paste_all")
def test_a_donor_of_another_size_is_cut_or_padded():
    base = pair(["AA..", "AA..", "...."], 10)
    small = pair([".P", ".."], 20)
    image, target = SimpleCopyPaste()(base, [small])
    assert drawn(target)["P"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert image[0].tolist() == [[10, 20, 10, 10], [10, 10, 10, 10], [10, 10, 10, 10]]
    large = pair(["P" * 9] * 7, 20)
    image, target = SimpleCopyPaste()(base, [large])
    assert (image == 20).all()
    assert target.boxes.tolist() == [[0, 0, 4, 3]]


@pytest.mark.usefixtures("paste_all")
def test_masks_follow_their_transforms_before_the_paste():
    """A donor that was mirrored and a base that was enlarged, both still as lazy maps."""
    _, target = pair(["A.", ".."], 10)
    base = (tv_tensors.Image(torch.full((3, 4, 4), 10, dtype=torch.uint8)), target.resized((4, 4)))
    donor_image, donor = pair(["P...", "....", "....", "...."], 20)
    donor = donor.transformed(AxisTransform.hflip(4), (4, 4))
    _, pasted = SimpleCopyPaste()(base, [(donor_image, donor)])
    shown = drawn(pasted)
    assert shown["A"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert shown["P"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert pasted.masks.source_size == pasted.masks.size == pasted.image_size == (4, 4)


def test_random_cases_against_a_loop_over_pixels(monkeypatch):
    rng = np.random.default_rng(5)
    for _ in range(30):
        base_masks = (rng.random((4, 9, 11)) < 0.4).astype(np.uint8)
        donor_masks = (rng.random((3, 9, 11)) < 0.1).astype(np.uint8)
        crowd = (rng.random(4) < 0.3).tolist()
        chosen = rng.random(3) < 0.5
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda n, c=chosen: torch.tensor(np.where(c, 0.1, 0.9)))
            base_image, donor_image = (
                tv_tensors.Image(torch.from_numpy(rng.integers(0, 256, (3, 9, 11), dtype=np.uint8)))
                for _ in range(2)
            )
            image, target = SimpleCopyPaste(min_visibility=0.7)(
                (base_image, target_of(list(base_masks), [0, 1, 2, 3], crowd)),
                [(donor_image, target_of(list(donor_masks), [10, 11, 12], [False] * 3))],
            )
        expected = {}
        for i, before in enumerate(base_masks):
            left = before.copy()
            for r, c in np.argwhere(before):
                if any(donor_masks[k, r, c] for k in range(3) if chosen[k]):
                    left[r, c] = 0
            if left.sum() >= (1 if crowd[i] else 0.7 * before.sum()) or not chosen.any():
                expected[i] = left
        expected |= {10 + k: donor_masks[k] for k in range(3) if chosen[k]}
        assert target.labels.tolist() == list(expected)
        for code, truth in zip(instance_rles(target), expected.values(), strict=True):
            assert np.array_equal(rle.decode(code), truth)
        for r, c in np.ndindex(9, 11):
            source = donor_image if donor_masks[chosen, r, c].any() else base_image
            assert torch.equal(image[:, r, c], source[:, r, c])


def test_each_object_is_pasted_half_the_time_independently():
    donor = pair(["PQ..", "...."], 20)
    base = (torch.zeros_like(donor[0]), Instances.empty((2, 4), with_masks=True))
    counts = {"": 0, "P": 0, "Q": 0, "PQ": 0}
    for _ in range(400):
        _, target = SimpleCopyPaste()(base, [donor])
        counts["".join(chr(x) for x in target.labels.tolist())] += 1
    assert all(70 < count < 130 for count in counts.values())


@pytest.mark.usefixtures("paste_all")
def test_blending_softens_the_image_and_leaves_the_masks_hard():
    base = (
        tv_tensors.Image(torch.zeros(3, 20, 40, dtype=torch.uint8)),
        Instances.empty((20, 40), with_masks=True),
    )
    donor_mask = np.zeros((20, 40), np.uint8)
    donor_mask[:, :20] = 1
    donor_image = tv_tensors.Image(torch.full((3, 20, 40), 200, dtype=torch.uint8))
    donor = (donor_image, target_of([donor_mask], [0], [False]))
    image, target = SimpleCopyPaste(blend_sigma=2.0)(base, [donor])
    # The blurred step is the normal distribution function, sampled half a pixel off the edge.
    expected = [100 * (1 - math.erf(x / 2 / np.sqrt(2))) for x in np.arange(-19.5, 20)]
    assert image.dtype == torch.uint8
    np.testing.assert_allclose(image[0, 10].numpy(), expected, atol=2)
    assert np.array_equal(rle.decode(instance_rles(target)[0]), donor_mask)


def test_targets_without_masks_are_refused():
    image, target = pair(["PP"], 1)
    bare = Instances(target.image_size, target.boxes, target.labels)
    with pytest.raises(ValueError, match="no masks"):
        SimpleCopyPaste()((image, target), [(image, bare)])


@pytest.mark.parametrize(
    "settings", [{"p": 1.1}, {"min_visibility": -0.1}, {"blend_sigma": -1.0}], ids=str
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SimpleCopyPaste(**settings)
