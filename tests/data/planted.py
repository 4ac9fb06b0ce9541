"""Images with one coloured rectangle, and the check that box and mask still lie on it."""

import numpy as np
import torch
from hypothesis import strategies as st
from torchvision import tv_tensors

from instseg.data.transforms import Pair
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, SparseMasks

# By label; the background is black. A gray fill is nearer to black than to any of them.
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def planted(size, box, label=0, *, as_rle=False, crowd=False) -> Pair:
    """A black image with one rectangle (x1, y1, x2, y2) of the label's colour."""
    x1, y1, x2, y2 = box
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = torch.tensor(COLOURS[label], dtype=torch.uint8)[:, None, None]
    polygon = [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float64)]
    mask = rle.from_polygons(polygon, size) if as_rle else polygon
    target = Instances(
        size,
        torch.tensor([box], dtype=torch.float32),
        torch.tensor([label]),
        masks=SparseMasks([mask], size, size),
        is_crowd=torch.tensor([crowd]),
    )
    return tv_tensors.Image(image), target


@st.composite
def planted_pairs(draw, label=0, max_side=60):
    """Images of any size from 1x1 with a rectangle of any size in them."""
    size = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    y1, x1 = (draw(st.integers(0, side - 1)) for side in size)
    y2, x2 = (
        draw(st.integers(start + 1, side)) for start, side in zip((y1, x1), size, strict=True)
    )
    return planted(size, (x1, y1, x2, y2), label, as_rle=draw(st.booleans()))


def many(count: int, size=(40, 50)) -> Pair:
    """``count`` boxes with masks at random places of an image of noise."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, (size[1] - 6, size[0] - 6), (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 6, (count, 2))], axis=1)
    polygons = [[np.array([[a, b], [c, b], [c, d], [a, d]])] for a, b, c, d in boxes]
    target = Instances(
        size,
        torch.from_numpy(boxes).float(),
        torch.zeros(count, dtype=torch.int64),
        masks=SparseMasks(polygons, size, size),
        is_crowd=torch.zeros(count, dtype=torch.bool),
    )
    return tv_tensors.Image(torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8))), target


def has_colour(image: torch.Tensor, label: int) -> np.ndarray:
    """``bool [H, W]``: which pixels are nearer to the colour of a label than to black or gray."""
    wanted = torch.tensor(COLOURS[label])[:, None, None]
    return ((image.int() - wanted).abs() <= 127).all(dim=0).numpy()


def check_on_pixels(image, target, zoom: float = 1.0, coloured=has_colour) -> None:
    """Boxes and masks cover their colour's pixels, but for a border of one pixel, and no others.

    Bilinear magnification by ``zoom`` rounds the corners off: a pixel of the original that is 0.21
    inside both edges has 0.71 of each edge's step, half of the colour.
    """
    assert image.dtype == torch.uint8
    assert tuple(image.shape) == (3, *target.image_size)
    for label, box, code in zip(
        target.labels.tolist(), target.boxes.tolist(), instance_rles(target), strict=True
    ):
        x1, y1, x2, y2 = box
        rows, columns = np.indices(target.image_size)
        margin = 1 + 0.21 * zoom
        inner = (rows >= y1 + margin) & (rows + 1 <= y2 - margin)
        inner &= (columns >= x1 + margin) & (columns + 1 <= x2 - margin)
        outer = (rows > y1 - 2) & (rows < y2 + 1) & (columns > x1 - 2) & (columns < x2 + 1)
        for shown in (coloured(image, label), rle.decode(code) == 1):
            assert shown[inner].all()
            assert not shown[~outer].any()
