"""Tiles against the whole image, and against a plain version of their joining."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from instseg.inference.tile_grid import TileGrid
from instseg.inference.tiling import TiledSegmenter, predict_bands
from instseg.models.preprocess import Preprocess
from instseg.models.semantic import SegmentationNetwork, SemanticSegmenter
from instseg.models.semantic.unet import UNet


class Unpadded(SegmentationNetwork):
    """One pooling, all convolutions unpadded: even sides of at least 10, 4 pixels lost."""

    class_layers = ("last.*",)

    def __init__(self, in_channels: int = 1, num_outputs: int = 2) -> None:
        super().__init__()
        self.in_channels, self.num_outputs, self.border = in_channels, num_outputs, 4
        self.first = nn.Conv2d(in_channels, 4, 3)
        self.below = nn.Conv2d(4, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.last = nn.Conv2d(4, num_outputs, 3)

    def valid_size(self, size: int) -> int:
        return max(2 * math.ceil(size / 2), 10)

    def forward(self, x: Tensor) -> Tensor:
        below = nn.functional.max_pool2d(self.first(x).relu(), 2)
        logits: Tensor = self.last(self.up(self.below(below).relu()))
        return logits


class Padded(SegmentationNetwork):
    """Two poolings and padded convolutions; an output sees less than 15 pixels to each side."""

    class_layers = ()

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.num_outputs = 1, 2
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ConvTranspose2d(4, 2, 4, stride=4),
        )

    def valid_size(self, size: int) -> int:
        return 4 * math.ceil(size / 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def no_loss(*_: object) -> dict[str, Tensor]:
    raise AssertionError("no targets are given")


def segmenter(network: SegmentationNetwork, **arguments: object) -> SemanticSegmenter:
    torch.manual_seed(0)
    for parameter in network.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    # Convolutions of other sizes may add in another order; in float64 that is lost in rounding.
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    channels = network.in_channels
    preprocess = Preprocess([0.4] * channels, [0.2] * channels, size_divisor=1)
    return SemanticSegmenter(preprocess, network, no_loss, **arguments).eval()


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@torch.inference_mode()
def check_equal(model: SemanticSegmenter, image: np.ndarray, tiled: TiledSegmenter) -> None:
    """Labels and scores of the tiles are those of the image in one piece."""
    (whole,) = model([torch.from_numpy(image)])
    found = tiled(image, scores=torch.float32)
    torch.testing.assert_close(found.scores, whole.scores, rtol=2e-7, atol=1e-9)
    assert torch.equal(found.labels, whole.labels)


UNPADDED = segmenter(Unpadded())
PADDED = segmenter(Padded())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 45),
    st.integers(1, 45),
    st.integers(16, 40),
    st.integers(0, 6),
    st.integers(1, 4),
)
def test_tiles_of_an_unpadded_network_give_the_whole(
    height: int, width: int, tile: int, overlap: int, batch_size: int
) -> None:
    tiled = TiledSegmenter(UNPADDED, tile, overlap=overlap, batch_size=batch_size)
    check_equal(UNPADDED, picture(1, height, width), tiled)


@pytest.mark.parametrize("size", [(150, 170), (3, 130), (1, 1), (130, 92)])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_unpadded_unet(size: tuple[int, int], multi_label: bool) -> None:
    """Depth 2: 20 pixels of border, pooling grids of 4; 108 pixels give 68, of which 68 abut."""
    network = UNet(3, 2, width=4, depth=2)
    model = segmenter(network, multi_label=multi_label)
    assert network.border == 20
    check_equal(model, picture(3, *size), TiledSegmenter(model, 108))


def test_the_unpadded_unet_of_the_papers_depth() -> None:
    """Of 220 pixels 36 are labelled; pooling grids are of 16, so that windows move by 32."""
    model = segmenter(UNet(1, 2, width=2))
    grid = TileGrid.of(model.network, (70, 100), 220, 0)
    assert [w.start for w in grid.columns] == [-92, -60, -28]
    check_equal(model, picture(1, 70, 100), TiledSegmenter(model, 220))


@pytest.mark.parametrize(("depth", "tile", "size"), [(2, 108, (150, 170)), (4, 220, (60, 100))])
@torch.inference_mode()
def test_equality_is_to_the_bit(depth: int, tile: int, size: tuple[int, int]) -> None:
    """With whole numbers for weights float64 adds without rounding, in whatever order."""
    torch.manual_seed(1)
    network = UNet(1, 3, width=2, depth=depth).double().eval()
    for parameter in network.parameters():
        parameter.copy_(torch.randint(-1, 2, parameter.shape))
    image = picture(1, *size)
    border = network.border
    extra = [network.valid_size(n + 2 * border) - n - border for n in size]
    pad = ((0, 0), (border, extra[0]), (border, extra[1]))
    canvas = torch.from_numpy(np.pad(image, pad, "reflect")).double()
    whole = network(canvas[None])[0, :, : size[0], : size[1]]
    assert 1e3 < whole.abs().max() < 2**53

    grid = TileGrid.of(network, size, tile, 0)
    assert len(grid) > 3
    bands = predict_bands(lambda windows: network(torch.stack(list(windows)).double()), image, grid)
    assert torch.equal(torch.cat([band for _, band in bands], dim=1), whole.float())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(40, 64))
def test_tiles_of_a_padded_network_give_the_whole_with_overlap_enough(
    height: int, width: int, tile: int
) -> None:
    tiled = TiledSegmenter(PADDED, tile, overlap=30, batch_size=2)
    check_equal(PADDED, picture(1, height, width), tiled)


@torch.inference_mode()
def test_without_overlap_a_padded_network_has_seams() -> None:
    """So the test above does test the overlap."""
    image = picture(1, 64, 64)
    (whole,) = PADDED([torch.from_numpy(image)])
    difference = TiledSegmenter(PADDED, 32, overlap=0)(image, scores=torch.float32)
    assert (difference.scores - whole.scores).abs().max() > 0.01


def test_windows_by_hand() -> None:
    """Sides are even and at least 10, of which 2 are labelled; 30 pixels need a canvas of 38.

    Windows of 14 label 6 and move by 6 less 1, rounded down to 4; the last ends with the canvas.
    """
    grid = TileGrid.of(Unpadded(), (30, 5), 14, 1)
    assert grid.sides == (14, 14)
    assert [w.start for w in grid.rows] == [-4, 0, 4, 8, 12, 16, 20]
    assert [(w.lo, w.hi) for w in grid.rows] == [
        (0, 5), (5, 9), (9, 13), (13, 17), (17, 21), (21, 25), (25, 30)
    ]  # fmt: skip
    assert [w.crop for w in grid.rows] == [0, 1, 1, 1, 1, 1, 1]
    # Five columns need a canvas of 14: one window.
    assert [(w.start, w.lo, w.hi, w.crop) for w in grid.columns] == [(-4, 0, 5, 0)]
    assert len(grid) == 7


def window_function(windows: list[Tensor]) -> Tensor:
    """A "network" whose result depends on where a pixel lies in the window."""
    batch = torch.stack(windows).float()
    ramp = torch.arange(batch.shape[-1]).float() / 10
    return torch.cat([batch + ramp, batch.mean(dim=(2, 3), keepdim=True) + 0 * batch], dim=1)


class Anything:
    """Sizes of a network that takes all multiples of 4 and keeps them."""

    border = 0

    def valid_size(self, size: int) -> int:
        return 4 * math.ceil(size / 4)

    def output_size(self, size: int) -> int:
        return size

    def covering_size(self, size: int) -> int:
        return self.valid_size(size)


@pytest.mark.parametrize("overlap", [0, 4, 9, 12])
@pytest.mark.parametrize("size", [(37, 50), (9, 21), (16, 16), (1, 40)])
def test_blending_is_a_weighted_mean(size: tuple[int, int], overlap: int) -> None:
    """Plain version: sums of weights and weighted values over all windows, then their quotient."""
    image = picture(1, *size)
    tile, canvas = 16, [4 * math.ceil(n / 4) for n in size]
    step = (tile - overlap) // 4 * 4
    padded = np.pad(image, ((0, 0), (0, canvas[0] - size[0]), (0, canvas[1] - size[1])), "reflect")
    sides = [min(tile, n) for n in canvas]
    starts = [sorted({*range(0, n - s, step), n - s}) for n, s in zip(canvas, sides, strict=True)]
    wave = [np.sin(np.pi * (np.arange(s) + 0.5) / s) ** 2 for s in sides]
    total, weight = np.zeros((2, *canvas)), np.zeros(canvas)
    for y in starts[0]:
        for x in starts[1]:
            place = (slice(y, y + sides[0]), slice(x, x + sides[1]))
            values = window_function([torch.from_numpy(padded[:, place[0], place[1]])])[0].numpy()
            total[:, place[0], place[1]] += values * np.outer(*wave)
            weight[place] += np.outer(*wave)
    expected = (total / weight)[:, : size[0], : size[1]]

    grid = TileGrid.of(Anything(), size, tile, overlap, "blend")
    bands = list(predict_bands(window_function, image, grid, batch_size=2))
    found = torch.cat([band for _, band in bands], dim=1)
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)
    firsts = np.cumsum([0] + [band.shape[1] for _, band in bands])
    assert [first for first, _ in bands] == firsts[:-1].tolist()
    # Held at a time: never more than the height of a tile.
    assert max(band.shape[1] for _, band in bands) <= tile


def test_blending_lessens_seams() -> None:
    model, image = segmenter(Padded()), picture(1, 96, 96)
    with torch.inference_mode():
        (whole,) = model([torch.from_numpy(image)])
    errors = {
        mode: (
            TiledSegmenter(model, 32, overlap=8, mode=mode)(image, scores=torch.float32).scores
            - whole.scores
        ).abs()
        for mode in ("exact", "blend")
    }
    assert 0 < errors["blend"].max() < errors["exact"].max()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 4)])
def test_windows_are_mirrored_as_by_numpy(size: tuple[int, int]) -> None:
    """The image is smaller than the border, which therefore shows it several times."""
    seen: list[Tensor] = []

    class Wide(Anything):
        border = 13

        def output_size(self, size: int) -> int:
            return size - 26

        def covering_size(self, size: int) -> int:
            return self.valid_size(size + 26)

    def remember(windows: list[Tensor]) -> Tensor:
        seen.extend(windows)
        return torch.zeros(1, 1, seen[-1].shape[1] - 26, seen[-1].shape[2] - 26)

    image = picture(2, *size).astype(np.uint16) * 256
    list(predict_bands(remember, image, TileGrid.of(Wide(), size, 100, 0)))
    extra = [4 * math.ceil((n + 26) / 4) - n - 13 for n in size]
    expected = np.pad(image, ((0, 0), (13, extra[0]), (13, extra[1])), "reflect")
    (window,) = seen
    assert window.dtype == torch.uint16
    assert np.array_equal(window.numpy(), expected)


@pytest.mark.parametrize("kind", ["tensor", "memmap", "big-endian", "float", "view"])
def test_images_of_every_kind(kind: str, tmp_path: Path) -> None:
    image = picture(1, 40, 50).astype(np.uint16) * 257
    given: np.ndarray | Tensor = image
    if kind == "tensor":
        given = torch.from_numpy(image)
    elif kind == "memmap":
        image.tofile(tmp_path / "image")
        given = np.memmap(tmp_path / "image", np.uint16, "r", shape=image.shape)
    elif kind == "big-endian":
        given = image.astype(">u2")
    elif kind == "float":
        given = image / 65535
    else:
        given = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    tiled = TiledSegmenter(UNPADDED, 20)
    found, expected = (tiled(i, scores=torch.float32) for i in (given, image))
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)


def test_scores_are_kept_where_wanted(tmp_path: Path) -> None:
    image, tiled = picture(1, 40, 50), TiledSegmenter(UNPADDED, 20)
    assert tiled(image).scores is None
    single = tiled(image, scores=torch.float32)
    assert torch.equal(tiled(image).labels, single.labels)
    half = tiled(image, scores=torch.float16)
    assert half.scores.dtype == torch.float16
    assert torch.equal(half.scores, single.scores.half())
    file = np.memmap(tmp_path / "scores", np.float32, "w+", shape=(2, 40, 50))
    tiled(image, scores=file)
    file.flush()
    written = np.fromfile(tmp_path / "scores", np.float32).reshape(2, 40, 50)
    assert np.array_equal(written, single.scores.numpy())


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_models_threshold_is_used(multi_label: bool) -> None:
    model = segmenter(Unpadded(), multi_label=multi_label, threshold=0.3)
    image = picture(1, 40, 50)
    found = TiledSegmenter(model, 20)(image, scores=torch.float32)
    scores = found.scores if multi_label else found.scores[1]
    assert found.threshold == 0.3
    assert torch.equal(found.labels, (scores >= 0.3).byte())
    assert not torch.equal(found.labels, (scores >= 0.5).byte())
    check_equal(model, image, TiledSegmenter(model, 20))


def test_progress() -> None:
    told: list[tuple[int, int]] = []
    tiled = TiledSegmenter(UNPADDED, 18, batch_size=2)
    tiled(picture(1, 30, 50), on_tile=lambda done, total: told.append((done, total)))
    # Outputs of 10: 3 rows of 5 windows, two or one at a time.
    assert told == [(done, 15) for done in (2, 4, 5, 7, 9, 10, 12, 14, 15)]


def test_the_default_overlap() -> None:
    assert TiledSegmenter(UNPADDED, 64).overlap == 0
    assert TiledSegmenter(PADDED, 64).overlap == 16


def test_the_model_leaves_training() -> None:
    assert not TiledSegmenter(segmenter(Unpadded()).train(), 64).model.training


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got tile 0"):
        TiledSegmenter(UNPADDED, 0)
    with pytest.raises(ValueError, match="batch_size 0"):
        TiledSegmenter(UNPADDED, 64, batch_size=0)
    image = picture(1, 100, 100)
    with pytest.raises(ValueError, match="mode must be one of exact, blend, got 'mean'"):
        TiledSegmenter(UNPADDED, 64, mode="mean")(image)
    with pytest.raises(ValueError, match="overlap must be at least 0 pixels, got -1"):
        TiledSegmenter(UNPADDED, 64, overlap=-1)(image)
    with pytest.raises(ValueError, match="of 10 pixels the network labels 2, an overlap of 1"):
        TiledSegmenter(UNPADDED, 10, overlap=1)(image)
    with pytest.raises(ValueError, match=r"image must be \[1, H, W\], got \[3, 9, 9\]"):
        TiledSegmenter(UNPADDED, 64)(picture(3, 9, 9))
    with pytest.raises(ValueError, match=r"scores must be floating \[2, 100, 100\].*float32 \[1,"):
        TiledSegmenter(UNPADDED, 64)(image, scores=np.zeros((1, 100, 100), np.float32))
    with pytest.raises(ValueError, match="scores must be floating"):
        TiledSegmenter(UNPADDED, 64)(image, scores=torch.int32)


MEMORY = """
from pathlib import Path
import numpy as np
import torch
from instseg.inference.tiling import TiledSegmenter
from instseg.models.preprocess import Preprocess
from instseg.models.semantic import SemanticSegmenter
from instseg.models.semantic.unet import UNet

model = SemanticSegmenter(
    Preprocess([0.5], [0.5], size_divisor=1), UNet(1, 2, width=4, depth=2), None
)
tiled = TiledSegmenter(model, 300)
image = np.random.default_rng(0).integers(0, 256, (1, 1500, 1500), dtype=np.uint8)

def peak():
    # Not getrusage, which begins at the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

tiled(image[:, :600, :600])
before = peak()
tiled(image)
print(peak() - before)
with torch.inference_mode():
    model([torch.from_numpy(image)])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_memory_does_not_grow_with_the_image() -> None:
    """1500 x 1500: labels of 2 MB and a band of 260 x 1500; in one piece, a map alone is 36 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True
    )
    tiled, whole = (float(line) for line in done.stdout.split())
    assert tiled < 30
    assert whole > 100
