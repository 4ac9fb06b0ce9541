"""`predict.py` with class maps, objects out of maps, and image to image, of any kind of image.

The weights are random and the truth is the model itself, run by hand.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from instseg.cli.predict import main
from instseg.config.build_model import build_model
from instseg.config.loader import parse_config
from instseg.config.schema import InferenceConfig
from instseg.config.trained import describe_weights, load_trained
from instseg.engine.weights import METADATA_KEY, save_weights
from instseg.models.semantic.pix2pix import Pix2Pix
from instseg.ops import instance_rles, rle

from .tiny import refused

GRAY = "image_channels: 1"
MULTI_LABEL = f"{GRAY}, classes: multilabel, loss: {{bce: 1}}"
UNET = "network: {name: unet, width: 4, depth: 2, padding: valid}"


def save(path: Path, model: str, names: tuple[str, ...] = ("cell",), transforms: str = "[]") -> str:
    """Weights of a random model; ``model`` holds the keys of its section."""
    text = f"model: {{{model}}}\ntransforms: {transforms}\n"
    config = parse_config(text, InferenceConfig, source="test")
    torch.manual_seed(3)
    net = build_model(config.model, num_classes=len(names), class_names=names)
    make_lively(net)
    categories = [{"id": 10 + k, "name": name} for k, name in enumerate(names)]
    about = json.dumps(describe_weights(config, categories))
    save_weights(path, net.state_dict(), {METADATA_KEY: about})
    return str(path)


def make_lively(net: nn.Module) -> None:
    """Have every class win somewhere, and pictures more than one gray."""
    with torch.no_grad():
        if isinstance(net, Pix2Pix):
            net.generator.up[-1][1].weight *= 100
            return
        noise = torch.randn(1, net.network.in_channels, 124, 124)
        net.network.head.bias -= net.network(noise).mean(dim=(0, 2, 3))


def semantic(
    path: Path, more: str = GRAY, names: tuple[str, ...] = ("cell",), **options: str
) -> str:
    return save(path, f"name: semantic, {UNET}, {more}", names, **options)


def pixels(seed: int, shape: tuple[int, ...] = (60, 72), dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)
    return path


def predict(weights: str, output: Path, *given: object) -> dict[str, Any]:
    """Run the command and return images.json."""
    assert main(["--weights", weights, "--output", str(output), *map(str, given)]) == 0
    listing: dict[str, Any] = json.loads((output / "images.json").read_text())
    return listing


def by_hand(weights: str, image: np.ndarray) -> Any:
    """What the model itself says of gray ``[H, W]`` or colour ``[H, W, C]``."""
    tensor = torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
    with torch.inference_mode():
        (found,) = load_trained(Path(weights)).model([tensor])
    return found


def read_gray(path: Path) -> np.ndarray:
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert (values.dtype, values.ndim) == (np.uint8, 2)
    return values


# --- class maps ---------------------------------------------------------------------------------


def test_a_class_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = semantic(tmp_path / "w.safetensors", names=("cell", "dirt"))
    image = pixels(0)
    file = write(tmp_path / "in" / "a.png", image)
    listing = predict(weights, tmp_path / "out", file)
    labels = read_gray(tmp_path / "out" / "a_labels.png")
    assert np.array_equal(labels, by_hand(weights, image).labels.numpy())
    assert len(np.unique(labels)) > 1
    entry = {"id": 1, "file_name": str(file), "height": 60, "width": 72, "labels": "a_labels.png"}
    assert listing == {
        "images": [entry],
        "categories": [{"id": 10, "name": "cell"}, {"id": 11, "name": "dirt"}],
        "values": {"background": 0, "cell": 1, "dirt": 2},
    }
    drawn = cv2.imread(str(tmp_path / "out" / "a.png"))
    assert drawn.shape == (60, 72, 3)
    gray = np.repeat(image[..., None], 3, axis=2)
    assert (drawn != gray).any(axis=2)[labels > 0].mean() > 0.9
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "a.png",
        "a_labels.png",
        "images.json",
    }
    assert "1 class maps in 1 images" in capsys.readouterr().out


def test_classes_without_background(tmp_path: Path) -> None:
    weights = semantic(
        tmp_path / "w.safetensors", f"{GRAY}, background: false", names=("wall", "roof", "sky")
    )
    listing = predict(weights, tmp_path / "out", write(tmp_path / "a.png", pixels(0)))
    assert listing["values"] == {"wall": 0, "roof": 1, "sky": 2}


def test_classes_that_overlap_have_a_file_each(tmp_path: Path) -> None:
    names = ("cell wall", "a/b")
    weights = semantic(tmp_path / "w.safetensors", MULTI_LABEL, names=names)
    image = pixels(1)
    listing = predict(weights, tmp_path / "out", write(tmp_path / "in" / "a.png", image))
    assert listing["images"][0]["labels"] == {
        "cell wall": "a_labels_0.png",
        "a/b": "a_labels_1.png",
    }
    assert "values" not in listing
    expected = by_hand(weights, image).labels.numpy()
    for k in range(2):
        assert np.array_equal(read_gray(tmp_path / "out" / f"a_labels_{k}.png"), expected[k])
    assert set(np.unique(expected)) == {0, 1}


@pytest.mark.parametrize("options", [[], ["--tile", "32"]])
def test_each_class_by_its_own_threshold(tmp_path: Path, options: list[str]) -> None:
    """The network is unpadded, so that tiles say what the whole image does."""
    thresholds = f"{MULTI_LABEL}, threshold: {{wall: 0.6, a: 0.45}}"
    weights = semantic(tmp_path / "w.safetensors", thresholds, names=("a", "wall"))
    image = pixels(0)
    scores = by_hand(weights, image).scores.numpy()
    predict(weights, tmp_path / "out", write(tmp_path / "a.png", image), *options)
    for k, threshold in enumerate((0.45, 0.6)):
        assert 0 < (scores[k] >= threshold).mean() < 1
        labels = read_gray(tmp_path / "out" / f"a_labels_{k}.png")
        assert (labels != (scores[k] >= threshold)).mean() < 1e-3  # rounding at the threshold


@pytest.mark.parametrize(("bits", "factor"), [(16, 1), (8, 256)])
def test_sixteen_bits(tmp_path: Path, bits: int, factor: int) -> None:
    """Kept where the model was built for them, else the high byte is taken."""
    weights = semantic(tmp_path / "w.safetensors", f"{GRAY}, image_bits: {bits}")
    image = pixels(2, dtype=np.uint16)
    listing = predict(weights, tmp_path / "out", write(tmp_path / "in" / "a.png", image))
    taken = image if bits == 16 else (image // factor).astype(np.uint8)
    labels = read_gray(tmp_path / "out" / "a_labels.png")
    assert np.array_equal(labels, by_hand(weights, taken).labels.numpy())
    assert listing["images"][0]["height"] == 60


def test_a_stack_is_predicted_page_by_page(tmp_path: Path) -> None:
    weights = semantic(tmp_path / "w.safetensors")
    stack = pixels(3, (11, 40, 48))
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    listing = predict(weights, tmp_path / "out", tmp_path / "stack.tif")
    assert [image["file_name"] for image in listing["images"]] == [
        f"{tmp_path}/stack.tif#page={page:02d}" for page in range(11)
    ]
    for page in (0, 10):
        labels = read_gray(tmp_path / "out" / f"stack_page{page:02d}_labels.png")
        assert np.array_equal(labels, by_hand(weights, stack[page]).labels.numpy())


def test_pages_may_be_the_channels_of_one_image(tmp_path: Path) -> None:
    weights = semantic(tmp_path / "w.safetensors", "image_channels: 4")
    stack = pixels(4, (4, 40, 48))
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    listing = predict(weights, tmp_path / "out", tmp_path / "a.tif")
    assert [image["file_name"] for image in listing["images"]] == [str(tmp_path / "a.tif")]
    labels = read_gray(tmp_path / "out" / "a_labels.png")
    expected = by_hand(weights, np.ascontiguousarray(stack.transpose(1, 2, 0))).labels
    assert np.array_equal(labels, expected.numpy())
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (40, 48, 3)


@pytest.mark.parametrize("transforms", ["[]", "[{name: resize, height: 70, width: 90}]"])
def test_tiles(tmp_path: Path, transforms: str) -> None:
    weights = semantic(tmp_path / "w.safetensors", transforms=transforms)
    file = write(tmp_path / "in" / "a.png", pixels(5, (110, 150)))
    predict(weights, tmp_path / "whole", file)
    predict(weights, tmp_path / "tiled", file, "--tile", 60)
    whole, tiled = (read_gray(tmp_path / name / "a_labels.png") for name in ("whole", "tiled"))
    assert whole.shape == (110, 150)
    assert (whole != tiled).mean() < 1e-3  # where both classes are as likely rounding may decide
    assert len(np.unique(whole)) > 1


def test_names_that_meet(tmp_path: Path) -> None:
    """Neither the labels of one image nor its drawing may be lost to another's."""
    weights = semantic(tmp_path / "w.safetensors")
    images = {name: pixels(i) for i, name in enumerate(("a", "a_labels", "b/a"))}
    files = [write(tmp_path / "in" / f"{name}.png", image) for name, image in images.items()]
    listing = predict(weights, tmp_path / "out", *files)
    names = [image["labels"] for image in listing["images"]]
    assert names == ["a_labels.png", "a_labels_1_labels.png", "a_1_labels.png"]
    for name, image in zip(names, images.values(), strict=True):
        expected = by_hand(weights, image).labels.numpy()
        assert np.array_equal(read_gray(tmp_path / "out" / name), expected)


# --- objects and pictures -----------------------------------------------------------------------


@pytest.mark.parametrize("tile", [[], ["--tile", 60]])
def test_objects_out_of_maps(tmp_path: Path, tile: list[object]) -> None:
    weights = semantic(
        tmp_path / "w.safetensors",
        f"{GRAY}, classes: border, instances: {{name: components, min_area: 5}}",
    )
    image = pixels(6, (80, 96))
    file = write(tmp_path / "in" / "a.png", image)
    listing = predict(weights, tmp_path / "out", file, "--score", "0.0", *tile)
    expected = by_hand(weights, image)
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    areas = [rle.area(code) for code in instance_rles(expected)]
    found = [record["segmentation"] for record in records]
    assert [rle.area({**code, "counts": code["counts"].encode()}) for code in found] == areas
    assert len(records) > 1
    assert {record["category_id"] for record in records} == {10}
    assert listing["categories"] == [{"id": 10, "name": "cell"}]
    assert "values" not in listing
    drawn = cv2.imread(str(tmp_path / "out" / "a.png"))
    assert (drawn != image[..., None]).any()
    assert not list((tmp_path / "out").glob("*_labels*"))


def test_image_to_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = save(tmp_path / "w.safetensors", "name: pix2pix, width: 4, depth: 3", names=())
    image = pixels(7, (40, 56, 3))
    file = write(tmp_path / "in" / "a.png", image)
    listing = predict(weights, tmp_path / "out", file)
    made = cv2.imread(str(tmp_path / "out" / "a.png"))[..., ::-1]
    expected = by_hand(weights, image[..., ::-1].copy()).image.permute(1, 2, 0).numpy()
    assert np.abs(made - 255 * expected).max() <= 0.51
    assert made.std() > 5
    entry = {"id": 1, "file_name": str(file), "height": 40, "width": 56}
    assert listing == {"images": [entry]}
    assert "1 pictures made in 1 images" in capsys.readouterr().out


# --- bad input ----------------------------------------------------------------------------------


def test_images_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = semantic(tmp_path / "w.safetensors")
    file = write(tmp_path / "a.png", pixels(8, (40, 48, 3)))
    argv = ["--weights", weights, "--output", str(tmp_path / "out"), str(file)]
    refused(main, argv, capsys, f"{file}: is a colour image")


def test_tiles_are_for_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = save(tmp_path / "w.safetensors", "name: pix2pix, width: 4, depth: 3", names=())
    file = write(tmp_path / "a.png", pixels(8))
    argv = ["--weights", weights, "--output", str(tmp_path / "out"), "--tile", "64", str(file)]
    refused(main, argv, capsys, "--tile is for models that predict class maps")


def test_tiles_that_are_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = "name: semantic, network: {name: unet, width: 4, depth: 3}, image_channels: 1"
    weights = save(tmp_path / "w.safetensors", same)
    file = write(tmp_path / "a.png", pixels(9))
    argv = ["--weights", weights, "--output", str(tmp_path / "out"), str(file), "--tile"]
    refused(main, [*argv, "8"], capsys, "--tile: a tile of 8 pixels is too small")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([*argv, "0"])
    assert "--tile must be at least 1 pixel, got 0" in capsys.readouterr().err


def test_labels_are_never_written_over_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = semantic(tmp_path / "w.safetensors")
    first = write(tmp_path / "in" / "a.png", pixels(0))
    second = write(tmp_path / "out" / "a_labels.png", pixels(1))
    shutil.copy(second, tmp_path / "copy.png")
    argv = ["--weights", weights, "--output", str(tmp_path / "out"), str(first), str(second)]
    refused(main, argv, capsys, f"{second} is one of the images: choose another --output")
    assert second.read_bytes() == (tmp_path / "copy.png").read_bytes()
