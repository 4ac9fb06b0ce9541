"""Generated micrographs: what they promise, and that configurations' formats read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from instseg.data.formats import instance_png, semantic_png
from instseg.data.image_io import read_image, read_label_image
from instseg.data.synthetic_cells import (
    generate_membranes,
    generate_nuclei,
    render_membranes,
    render_nuclei,
)

SIZE = (96, 128)
GENERATORS = [generate_membranes, generate_nuclei]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.png")}


@pytest.mark.parametrize("generate", GENERATORS)
def test_pictures_are_a_function_of_the_seed(generate: Callable[..., None], tmp_path: Path) -> None:
    """And picture i is the same however many follow."""
    generate(tmp_path / "a", images=3, size=SIZE, seed=5)
    generate(tmp_path / "b", images=2, size=SIZE, seed=5)
    generate(tmp_path / "c", images=2, size=SIZE, seed=6)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert sorted(a) == [f"{d}/{i:04d}.png" for d in ("images", "masks") for i in range(3)]
    assert b == {name: a[name] for name in b}
    assert len(set(a.values())) == 6
    assert not set(b.values()) & set(c.values())
    assert read_image(tmp_path / "a/images/0000.png", channels=1).shape == (*SIZE, 1)


def test_membranes_part_the_cells(tmp_path: Path) -> None:
    image, mask = render_membranes(np.random.default_rng(0), SIZE)
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == (SIZE, np.uint8, SIZE, np.uint8)
    assert set(np.unique(mask)) == {0, 255}
    assert 0.5 < (mask == 255).mean() < 0.9
    _, cells = ndimage.label(mask)
    assert cells >= 8  # of some 25 x 25 pixels each
    assert image[mask == 0].mean() < image[mask == 255].mean() - 40
    generate_membranes(tmp_path, images=2, size=SIZE, seed=0)
    coco = semantic_png.read(tmp_path / "images", tmp_path / "masks", category="cell")
    assert [c["name"] for c in coco["categories"]] == ["cell"]
    assert len(coco["annotations"]) == 2


def test_nuclei_are_bright_and_some_touch(tmp_path: Path) -> None:
    image, numbers = render_nuclei(np.random.default_rng(1), SIZE)
    assert (image.shape, image.dtype, numbers.shape, numbers.dtype) == (
        SIZE,
        np.uint8,
        SIZE,
        np.uint16,
    )
    count = int(numbers.max())
    assert np.unique(numbers).tolist() == list(range(count + 1))
    assert np.bincount(numbers.ravel()).min() >= 30
    _, blobs = ndimage.label(numbers > 0)
    assert 1 < blobs < count
    assert image[numbers > 0].mean() > image[numbers == 0].mean() + 30
    generate_nuclei(tmp_path, images=1, size=SIZE, seed=0)
    stored = read_label_image(tmp_path / "masks/0000.png")
    coco = instance_png.read(tmp_path / "images", tmp_path / "masks", category="nucleus")
    assert len(coco["annotations"]) == stored.max() > 3


@pytest.mark.parametrize("generate", GENERATORS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"images": 0, "seed": 0},
        {"images": 1, "seed": -1},
        {"images": 1, "seed": 0, "size": (63, 200)},
    ],
)
def test_arguments_out_of_range(
    generate: Callable[..., None], arguments: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="size at least 64 x 64, got images="):
        generate(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
