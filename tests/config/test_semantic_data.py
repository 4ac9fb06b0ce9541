"""What semantic networks learn from, and what scores them, by the configuration."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from instseg.config.build import build_evaluator, build_options, build_train_loader, read_index
from instseg.config.build_data import build_transforms, read_pairs
from instseg.config.build_evaluators import score_names
from instseg.config.build_maps import build_target, map_scorers
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_data import CopyPasteConfig
from instseg.config.schema_semantic import SemanticConfig
from instseg.data import transforms
from instseg.data.weight_map import class_balance, gap_weights
from instseg.structures import Instances, SparseMasks

from .test_build import load

TEXT = """\
model: {name: semantic, network: {name: unet, width: 2, depth: 1}}
data:
  train: {format: semantic_png, images: DATA/images, masks: DATA/masks}
  val: {format: semantic_png, images: DATA/images, masks: DATA/masks}
  workers: 0
train:
  epochs: 3
  optimizer: {name: sgd, lr: 0.02}
  schedule: {name: cosine, warmup_steps: 0}
"""


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A configuration of two pictures with a square, one of class 1 and one of class 2."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, value in (("a", 1), ("b", 2)):
        mask = np.zeros((20, 24), np.uint8)
        mask[4:12, 6:16] = value
        assert cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), 50 * mask)
        assert cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    return TEXT.replace("DATA", str(tmp_path))


TWO = "classes: {cat: 1, dog: 2}"


def of_two(tmp_path: Path, text: str, *overrides: str) -> Config:
    return load(tmp_path, *overrides, text=text.replace("masks}", f"masks, {TWO}}}"))


def test_settings_of_targets(tmp_path: Path, text: str) -> None:
    config = load(
        tmp_path,
        "model.classes=border",
        "data.targets={border_width: 3, separate_touching: true, cells: components, "
        "weight_map: {w0: 4, sigma: 2, class_weights: [1, 2, 3], max_class_weight: 5}}",
        text=text,
    )
    target = build_target(config, 1)
    assert (target.kind, target.border_width, target.cells) == ("border", 3, "components")
    assert target.separate_touching
    assert target.weights is not None
    assert (target.weights.w0, target.weights.sigma) == (4, 2)
    assert (target.weights.class_weights, target.weights.max_class_weight) == ((1, 2, 3), 5)
    plain = build_target(load(tmp_path, "model.background=false", text=text), 2)
    assert (plain.kind, plain.background, plain.weights) == ("multiclass", False, None)


@pytest.mark.parametrize(
    ("overrides", "classes", "message"),
    [
        (["model.classes=border"], 2, r"data\.targets and model\.classes: kind 'border' is for"),
        (
            ["model.background=false", "data.targets.separate_touching=true"],
            2,
            r"data\.targets and model\.classes: background=False.*separate_touching",
        ),
    ],
)
def test_targets_that_cannot_be(
    tmp_path: Path, text: str, overrides: list[str], classes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_target(load(tmp_path, *overrides, text=text), classes)


WEIGHTED = "data.targets={weight_map: {w0: 10, sigma: 5}, cell_labels: [0]}"


def test_labels_that_are_cells(tmp_path: Path, text: str) -> None:
    """Two cats, a dog between them: only the gap between the cats counts more."""
    corners = [(2.0, 0), (14.0, 0), (8.0, 1)]
    squares = [np.array([[x, 2], [x + 4, 2], [x + 4, 8], [x, 8]]) for x, _ in corners]
    objects = Instances(
        (10, 20),
        torch.tensor([[x, 2.0, x + 4, 8] for x, _ in corners]),
        torch.tensor([label for _, label in corners]),
        masks=SparseMasks([[square] for square in squares], (10, 20), (10, 20)),
    )
    found = build_target(of_two(tmp_path, text, WEIGHTED), 2)(objects)
    labels = found.labels.numpy()
    numbers = np.where(labels == 1, np.where(np.arange(20) < 10, 1, 2), 0).astype(np.int32)
    assert found.weights is not None
    extra = found.weights.numpy() - class_balance(labels)[labels]
    assert np.allclose(extra, gap_weights(numbers), atol=1e-5)
    everything = build_target(of_two(tmp_path, text, "data.targets={weight_map: {}}"), 2)(objects)
    assert everything.weights is not None
    # Without the choice the dog's neighbours are nearer.
    assert everything.weights[5, 7] > found.weights[5, 7]


def test_cells_that_there_are_not(tmp_path: Path, text: str) -> None:
    config = of_two(tmp_path, text, WEIGHTED.replace("[0]", "[0, 2]"))
    with pytest.raises(ConfigError, match=r"data\.targets.*cell_labels must be in 0\.\.1, got 2"):
        build_target(config, 2)
    for setting, message in (
        ("{cell_labels: [0]}", r"data\.targets: cell_labels says .*: set weight_map"),
        ("{weight_map: {}, cell_labels: []}", r"data\.targets\.cell_labels: expected at least 1"),
        ("{weight_map: {}, cell_labels: [cat]}", r"cell_labels\.0: expected an integer, got 'cat'"),
    ):
        with pytest.raises(ConfigError, match=message):
            of_two(tmp_path, text, f"data.targets={setting}")


def test_objects_are_pasted_before_maps_are_painted(tmp_path: Path, text: str) -> None:
    """A map shows the class of what was pasted, at its pixels."""
    config = of_two(tmp_path, text, "model.image_channels=1", "data.aspect_grouping=false")
    pasting = config.data.model_copy(update={"copy_paste": CopyPasteConfig(p=1.0)})
    config = config.model_copy(update={"data": pasting})
    loader = build_train_loader(config, read_index(config.data.train, need_masks=True))
    names = set()
    for epoch in range(8):
        for batch in loader.epoch(epoch):
            for image, target, path in zip(batch.images, batch.targets, batch.paths, strict=True):
                assert torch.equal(image[0], 50 * target.labels)
                names |= {(path[-5], int(target.labels.max()))}
    assert names >= {("a", 1), ("a", 2), ("b", 1)}


@pytest.mark.parametrize(("channels", "bits"), [(1, 16), (3, 8)])
def test_batches_of_the_training(tmp_path: Path, text: str, channels: int, bits: int) -> None:
    config = of_two(
        tmp_path, text, f"model.image_channels={channels}", f"model.image_bits={bits}",
        "data.targets.weight_map={}",
    )  # fmt: skip
    index = read_index(config.data.train, need_masks=True)
    (batch,) = build_train_loader(config, index).epoch(0)
    assert [image.shape for image in batch.images] == [(channels, 20, 24)] * 2
    labels = {path[-5]: t.labels for path, t in zip(batch.paths, batch.targets, strict=True)}
    expected = torch.zeros(20, 24, dtype=torch.uint8)
    expected[4:12, 6:16] = 1
    assert torch.equal(labels["a"], expected)
    assert torch.equal(labels["b"], 2 * expected)
    assert all(t.weights is not None for t in batch.targets)


def test_16_bits_are_kept_where_the_model_wants_them(tmp_path: Path, text: str) -> None:
    wide = np.arange(480, dtype=np.uint16).reshape(20, 24) * 100
    for name in "ab":
        assert cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), wide)
    for bits, expected in ((16, wide), (8, wide >> 8)):
        config = of_two(tmp_path, text, "model.image_channels=1", f"model.image_bits={bits}")
        index = read_index(config.data.train, need_masks=True)
        (batch,) = build_train_loader(config, index).epoch(0)
        assert np.array_equal(batch.images[0][0].numpy(), expected)


def test_transforms_of_semantic_networks(tmp_path: Path, text: str) -> None:
    sections = load(
        tmp_path,
        "data.train_transforms=[{name: elastic, p: 0.5, sigma: 3, grid: 4, rotation: 20, "
        "min_scale: 0.9, max_scale: 1.2}, {name: random_window, height: 7, width: 9}, "
        "{name: vertical_flip, p: 0.25}, {name: rotation90, p: 0.125}, "
        "{name: intensity_jitter, p: 0.5, brightness: 0.3, contrast: 0.4, gamma: 0.6}]",
        text=text,
    ).data.train_transforms
    elastic, window, flip, turn, jitter = build_transforms(sections).transforms
    assert isinstance(elastic, transforms.ElasticDeformation)
    assert (elastic.sigma, elastic.grid, elastic.rotation, elastic.p) == (3, 4, 20, 0.5)
    assert (elastic.min_scale, elastic.max_scale) == (0.9, 1.2)
    assert isinstance(window, transforms.RandomWindow)
    assert window.size == (7, 9)
    assert isinstance(flip, transforms.RandomVerticalFlip)
    assert flip.p == 0.25
    assert isinstance(turn, transforms.RandomRotation90)
    assert turn.p == 0.125
    assert isinstance(jitter, transforms.IntensityJitter)
    assert (jitter.brightness, jitter.contrast, jitter.gamma, jitter.p) == (0.3, 0.4, 0.6, 0.5)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("include: ['a*']", ["a.png"]),
        ("exclude: ['a*']", ["b.png"]),
        ("include: ['*.png'], exclude: ['b*', 'x*']", ["a.png"]),
        ("fold: {folds: 2, index: 1, part: train}", ["a.png"]),
    ],
)
def test_parts_of_a_data_set(tmp_path: Path, text: str, source: str, names: list[str]) -> None:
    chosen = text.replace("masks}", f"masks, {TWO}, {source}}}")
    index = read_index(load(tmp_path, text=chosen).data.train, need_masks=True)
    assert [record.path.name for record in index.records] == names
    assert index.class_names == ["cat", "dog"]


@pytest.mark.parametrize("source", ["include: ['c*']", "exclude: ['*']"])
def test_a_part_without_images(tmp_path: Path, text: str, source: str) -> None:
    chosen = text.replace("masks}", f"masks, {TWO}, {source}}}")
    message = rf"^{tmp_path}/masks: no image is left by include and exclude"
    with pytest.raises(ConfigError, match=message):
        read_index(load(tmp_path, text=chosen).data.train, need_masks=True)


def test_classes_that_contradict_each_other_name_the_masks(tmp_path: Path, text: str) -> None:
    chosen = text.replace("masks}", "masks, classes: {cat: 1, dog: 1}}")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/masks: .*have one value, 1"):
        read_index(load(tmp_path, text=chosen).data.train, need_masks=True)


def test_pairs_are_for_pix2pix_alone(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, "data.val={format: image_pairs, folder: x}", text=text)
    with pytest.raises(ConfigError, match=r"image_pairs \(x\) has no objects.*model pix2pix"):
        read_index(config.data.val, need_masks=True)
    with pytest.raises(ConfigError, match="pix2pix needs format image_pairs, not semantic_png"):
        read_pairs(config.data.train)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("include: ['deep/*']", ["deep/c.png"]),
        ("exclude: ['a*']", ["b.png", "deep/c.png"]),
        ("swap: true, include: ['b.bmp']", ["b.bmp"]),
        ("fold: {folds: 2, index: 0, part: val}", ["a.png", "deep/c.png"]),
    ],
)
def test_parts_of_pairs(tmp_path: Path, text: str, part: str, names: list[str]) -> None:
    write_pairs(tmp_path / "pairs")
    source = f"{{format: image_pairs, folder: {tmp_path / 'pairs'}, {part}}}"
    pairs = read_pairs(load(tmp_path, f"data.train={source}", text=text).data.train)
    assert [pair.name for pair in pairs] == names
    ids = [{"a": 1, "b": 2, "c": 3}[Path(name).stem] for name in names]
    assert [pair.image_id for pair in pairs] == ids
    assert [pair.target_path.stem for pair in pairs] == [Path(name).stem for name in names]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("include: ['x*']", "no image is left by include and exclude"),
        ("fold: {folds: 9, index: 8, part: val}", "no pair of pictures is left by fold"),
    ],
)
def test_a_part_without_pairs(tmp_path: Path, text: str, part: str, words: str) -> None:
    write_pairs(tmp_path / "pairs")
    source = f"{{format: image_pairs, folder: {tmp_path / 'pairs'}, {part}}}"
    config = load(tmp_path, f"data.train={source}", text=text)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/pairs: {words}"):
        read_pairs(config.data.train)


def write_pairs(folder: Path) -> None:
    for name in ("b", "a", "deep/c"):
        for kind, suffix in (("inputs", "png"), ("targets", "bmp")):
            path = folder / kind / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.zeros((12, 12, 3), np.uint8))


@pytest.mark.parametrize(
    ("overrides", "kinds", "default"),
    [
        ([], ["semantic"], "semantic/jaccard"),
        (["model.classes=multilabel"], ["semantic"], "semantic/jaccard"),
        (["model.classes=border"], ["semantic"], "semantic/jaccard"),
        (["evaluation.maps=[em, semantic]"], ["em", "semantic"], "semantic/jaccard"),
        (["evaluation.maps=[threshold]"], ["threshold"], "threshold/auc"),
        (["evaluation.maps=[em]"], ["em"], "em/v_rand"),
        (["model.instances={name: components}"], ["segm", "bbox"], "segm/AP"),
        (["model={name: pix2pix}"], ["image"], "image/ssim"),
    ],
)
def test_what_chooses_the_best_model(
    tmp_path: Path, text: str, overrides: list[str], kinds: list[str], default: str
) -> None:
    config = load(tmp_path, *overrides, text=text)
    names = score_names(config)
    assert {name.split("/")[0] for name in names} == set(kinds)
    assert build_options(config).best_metric == names[0] == default


@pytest.mark.parametrize("kind", ["em", "threshold"])
def test_scores_of_one_foreground(tmp_path: Path, text: str, kind: str) -> None:
    config = load(tmp_path, text=text).model
    assert isinstance(config, SemanticConfig)
    assert list(map_scorers(config, ["cell"], [kind])) == [kind]
    message = f"evaluation.maps asks for '{kind}', which scores the foreground of one.*has 2"
    with pytest.raises(ConfigError, match=message):
        map_scorers(config, ["cat", "dog"], [kind])


def test_classes_of_training_and_validation_have_to_agree(tmp_path: Path, text: str) -> None:
    config = of_two(tmp_path, text)
    index = read_index(config.data.val, need_masks=True)
    build_evaluator(config, index, ["cat", "dog"])
    with pytest.raises(ConfigError, match="classes are dog, cat, those of the validation data cat"):
        build_evaluator(config, index, ["dog", "cat"])
