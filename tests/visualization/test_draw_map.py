"""Images of any kind become pictures, and class maps are coloured on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instseg.structures import IGNORE, SemanticMap
from instseg.visualization.draw import PALETTE
from instseg.visualization.draw_map import displayable, draw_map


def blend(gray: int, label: int, opacity: float) -> list[int]:
    """A gray pixel with the colour of a label over it."""
    return [round((1 - opacity) * gray + opacity * c) for c in PALETTE[label]]


def map_of(labels: np.ndarray) -> SemanticMap:
    return SemanticMap(torch.from_numpy(labels))


# --- images -------------------------------------------------------------------------------------


def test_rgb_is_shown_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    shown = displayable(image)
    assert np.array_equal(shown, image.permute(1, 2, 0).numpy())
    assert (shown.dtype, shown.flags.c_contiguous) == (np.uint8, True)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
def test_other_numbers_of_channels(channels: int, shown: list[int]) -> None:
    image = torch.arange(channels, dtype=torch.uint8)[:, None, None].expand(-1, 4, 6)
    assert displayable(image).tolist() == [[shown] * 6] * 4


def test_sixteen_bits_are_stretched() -> None:
    """A camera of 12 bits would be next to black otherwise."""
    image = torch.tensor([[[100, 1100, 2100, 3100, 4100]]]).to(torch.uint16)
    assert displayable(image)[0, :, 0].tolist() == [0, 64, 128, 191, 255]
    whole = torch.tensor([[[0, 65535]]]).to(torch.uint16)
    assert displayable(whole)[0, :, 2].tolist() == [0, 255]
    flat = torch.full((1, 2, 2), 700).to(torch.uint16)
    assert displayable(flat).tolist() == [[[0, 0, 0]] * 2] * 2


def test_fractions_are_clipped_and_rounded() -> None:
    image = torch.tensor([[[-0.5, 0.0, 0.5, 1.0, 1.7]]])
    assert displayable(image)[0, :, 1].tolist() == [0, 0, 128, 255, 255]
    assert displayable(image.bfloat16().float()).dtype == np.uint8


# --- maps ---------------------------------------------------------------------------------------


def test_classes_are_coloured_but_for_the_background() -> None:
    """Inside, where no outline runs: class 1 has the colour of label 0, as of a detector."""
    labels = np.zeros((20, 60), np.uint8)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    image = np.full((20, 60, 3), 100, np.uint8)
    drawn = draw_map(image, map_of(labels), opacity=0.5)
    assert drawn[10, 5].tolist() == [100, 100, 100]
    assert drawn[10, 30].tolist() == blend(100, 0, 0.5)
    assert drawn[10, 50].tolist() == blend(100, 1, 0.5)
    assert (image == 100).all()  # a copy was drawn on


def test_without_background_class_0_is_coloured_too() -> None:
    labels = np.zeros((20, 40), np.uint8)
    labels[:, 20:] = 1
    image = np.full((20, 40, 3), 40, np.uint8)
    drawn = draw_map(image, map_of(labels), background=False, opacity=0.25)
    assert drawn[10, 10].tolist() == blend(40, 0, 0.25)
    assert drawn[10, 30].tolist() == blend(40, 1, 0.25)


def test_outlines_are_lined() -> None:
    """Smooth lines leave their pixels a little of what is below."""
    labels = np.zeros((20, 40), np.uint8)
    labels[5:15, 10:30] = 1
    drawn = draw_map(np.full((20, 40, 3), 100, np.uint8), map_of(labels), opacity=0.0)
    for pixel in (drawn[5, 20], drawn[10, 10]):
        assert np.abs(pixel.astype(int) - PALETTE[0]).max() < 30
    assert drawn[10, 20].tolist() == [100, 100, 100]


def test_overlapping_classes_lie_on_each_other() -> None:
    labels = np.zeros((2, 20, 60), np.uint8)
    labels[0, :, :40], labels[1, :, 20:] = 1, 1
    drawn = draw_map(np.full((20, 60, 3), 200, np.uint8), map_of(labels), opacity=0.5)
    first = blend(200, 0, 0.5)
    assert drawn[10, 10].tolist() == first
    both = [round(0.5 * a + 0.5 * b) for a, b in zip(first, PALETTE[1], strict=True)]
    assert drawn[10, 30].tolist() == both
    assert drawn[10, 50].tolist() == blend(200, 1, 0.5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_unknown_pixels_are_shaded(multi_label: bool) -> None:
    labels = np.zeros((20, 40), np.uint8)
    labels[:, 20:] = IGNORE
    labels = np.stack([labels, np.zeros_like(labels)]) if multi_label else labels
    drawn = draw_map(np.full((20, 40, 3), 100, np.uint8), map_of(labels))
    assert drawn[10, 10].tolist() == [100, 100, 100]
    assert drawn[10, 30].tolist() == [114, 114, 114]  # 100 / 2 + 64


def test_more_classes_than_colours() -> None:
    count = len(PALETTE)
    labels = np.repeat(np.arange(count + 1, dtype=np.uint8), 20)[None].repeat(20, axis=0)
    image = np.full((*labels.shape, 3), 90, np.uint8)
    drawn = draw_map(image, map_of(labels), background=False)
    assert drawn[10, 10].tolist() == drawn[10, 20 * count + 10].tolist()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 41, 3), np.uint8),
        np.zeros((20, 40), np.uint8),
        np.zeros((20, 40, 3), np.float32),
    ],
)
def test_images_that_do_not_fit(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \[20, 40, 3\] like the map, got"):
        draw_map(image, map_of(np.zeros((20, 40), np.uint8)))
