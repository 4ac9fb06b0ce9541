"""What is fuzzed: every reader of files from outside, and the errors that it documents."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from instseg.config.loader import ConfigError, load_config, parse_config
from instseg.config.schema import Config
from instseg.data.check import check_coco
from instseg.data.coco import AnnotationError, SegmentationError, load_coco, parse_segmentation
from instseg.data.columns import ColumnsError, open_columns
from instseg.data.formats import FormatError, labelme, via, voc, yolo
from instseg.data.formats.common import Coco
from instseg.data.image_io import (
    ImageError,
    count_pages,
    image_size,
    read_image,
    read_label_colours,
    read_label_image,
)
from instseg.data.index import build_index
from instseg.data.json_stream import stream_coco
from instseg.data.shards import index
from instseg.data.shards.errors import ShardError
from instseg.engine.checkpoint import read_checkpoint
from instseg.engine.errors import CheckpointError
from instseg.engine.weights import load_weights
from instseg.evaluation.coco import evaluate_files
from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.results import ResultsError
from instseg.evaluation.scores import BootstrapOptions
from instseg.ops import rle
from instseg.ops._torch.run_lengths import rle_areas
from instseg.structures.run_lengths import RunLengths

from . import corpus, mutate

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Args:
        errors: all that it may raise.
        corpus: makes the inputs to start from.
        prepare: lays out a folder and gives what reads one input in it.
        change: makes an input of others.
        share: of all inputs, relative to the other targets' shares.
        names_files: inputs name files that are to be read wherever they are.
        megabytes: what reading may take beyond what the process had before.
        seconds: of processor time that one input may take.
    """

    errors: tuple[type[Exception], ...]
    corpus: Callable[[], list[bytes]]
    prepare: Callable[[Path], Read]
    change: mutate.Mutator = mutate.change_bytes
    share: int = 5
    names_files: bool = False
    megabytes: float = 200.0
    seconds: float = 5.0


def _config(folder: Path) -> Read:
    (folder / "small.yaml").write_bytes(corpus.text("config", "small.yaml"))
    file = folder / "input.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        load_config(file, Config)

    return read


def _stored_config(folder: Path) -> Read:
    return lambda data: parse_config(data.decode("utf-8", "replace"), Config, source="weights")


def _settings(folder: Path) -> Read:
    file = folder / "small.yaml"
    file.write_bytes(corpus.text("config", "small.yaml"))

    def read(data: bytes) -> None:
        load_config(file, Config, data.decode("utf-8", "replace").splitlines()[:20])

    return read


def _images(folder: Path) -> Path:
    """The images that the annotations of the corpus name."""
    root = folder / "images"
    (root / "sub").mkdir(parents=True)
    picture = Image.fromarray(corpus.picture())
    for name in ("a.png", "a.jpg", "sub/b.jpg"):
        picture.save(root / name)
    (root / "stack.tif").write_bytes(corpus.tiffs()[3])
    return root


def _coco(folder: Path) -> Read:
    root, file = _images(folder), folder / "input.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        for load, masks in ((load_coco, True), (stream_coco, True), (stream_coco, False)):
            coco = load(file)
            try:
                build_index(coco, root, source="input.json", need_masks=masks)
            except AnnotationError:
                continue  # the check below has to find out why
        check_coco(file, root)

    return read


def _run_lengths(folder: Path) -> Read:
    size = (40, 60)
    rng = np.random.default_rng(0)

    def read(data: bytes) -> None:
        text = data.decode("latin-1")
        counts: object = text
        if data[:1] == b"[":
            try:
                counts = json.loads(data)
            except (ValueError, RecursionError):
                counts = data
        else:
            _compare_areas([data, b"X1X1`X2", data[: int(rng.integers(len(data) + 1))]], size)
        code = parse_segmentation({"size": list(size), "counts": counts}, size)
        assert isinstance(code, dict)
        assert rle.decode(code).sum() == rle.area(code)

    return read


def _compare_areas(strings: list[bytes], size: tuple[int, int]) -> None:
    """All kernels know the sound strings from the others, and agree with `decode_counts`."""
    expected = [_plain_area(string, size[0] * size[1]) for string in strings]
    lengths = RunLengths.of([{"size": list(size), "counts": string} for string in strings])
    for kernel in (rle.areas, rle_areas):
        assert kernel(lengths).tolist() == expected, kernel


def _plain_area(string: bytes, pixels: int) -> int:
    try:
        runs = rle.decode_counts(string)
    except ValueError:
        return -1
    sound = len(runs) > 0 and runs.min() >= 0 and sum(runs.tolist()) == pixels
    return int(runs[1::2].sum()) if sound else -1


def _voc(folder: Path) -> Read:
    _images(folder).rename(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    file = folder / "Annotations" / "a.xml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        _write(voc.read(folder))

    return read


def _labelme(folder: Path) -> Read:
    root = _images(folder)

    def read(data: bytes) -> None:
        (root / "a.json").write_bytes(data)
        _write(labelme.read(root, skip_shapes=["point"]))

    return read


def _via(folder: Path) -> Read:
    root, file = _images(folder), folder / "input.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        _write(via.read(file, root, attribute="class"))

    return read


def _write(coco: Coco) -> None:
    """What was read is a COCO file's content: no NaN, nothing that JSON does not have."""
    json.dumps(coco, allow_nan=False)


def _yolo(folder: Path) -> Read:
    root, labels = folder / "images", folder / "labels"
    root.mkdir()
    labels.mkdir()
    Image.fromarray(corpus.picture()).save(root / "a.jpg")

    def read(data: bytes) -> None:
        (labels / "a.txt").write_bytes(data)
        _write(yolo.read(root, labels, names=["fig", "nut"]))

    return read


def _yolo_names(folder: Path) -> Read:
    file = folder / "data.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        yolo.read_names(file)

    return read


def _results(folder: Path) -> Read:
    truth, file = folder / "truth.json", folder / "input.json"
    truth.write_bytes(corpus.text("coco", "sound.json"))

    def read(data: bytes) -> None:
        file.write_bytes(data)
        evaluate_files(truth, file, intervals=BootstrapOptions(replicates=0))

    return read


def _ground_truth(folder: Path) -> Read:
    truth, file = folder / "input.json", folder / "results.json"
    file.write_bytes(corpus.text("results", "masks.json"))

    def read(data: bytes) -> None:
        truth.write_bytes(data)
        evaluate_files(truth, file, intervals=BootstrapOptions(replicates=0))

    return read


def _boundaries(folder: Path) -> Read:
    """Two masks, which are scored by their boundaries, on an image as large as they may claim."""
    truth, found = folder / "truth.json", folder / "results.json"
    height, width = corpus.HUGE
    ids = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}

    def read(data: bytes) -> None:
        try:
            masks = json.loads(data)
            own, other = masks["truth"], masks["found"]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):
            own = other = data.decode("latin-1")
        annotation = ids | {"id": 1, "area": 81, "iscrowd": 0, "segmentation": own}
        truth.write_text(
            json.dumps(
                {
                    "images": [{"id": 1, "height": height, "width": width}],
                    "annotations": [annotation],
                    "categories": [{"id": 1, "name": "x"}],
                }
            )
        )
        found.write_text(json.dumps([ids | {"score": 0.5, "segmentation": other}]))
        evaluate_files(truth, found, ["boundary"], intervals=BootstrapOptions(replicates=0))

    return read


def _checkpoint(folder: Path) -> Read:
    file = folder / "last.safetensors"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        tensors, _ = read_checkpoint(file)
        _sum(tensors)

    return read


def _weights(suffix: str) -> Callable[[Path], Read]:
    def prepare(folder: Path) -> Read:
        file = folder / f"input{suffix}"

        def read(data: bytes) -> None:
            file.write_bytes(data)
            _sum(load_weights(file)[0])

        return read

    return prepare


def _sum(tensors: dict[str, Tensor]) -> None:
    """Read all of their memory."""
    for tensor in tensors.values():
        tensor.sum()


def _image(folder: Path) -> Read:
    file = folder / "input"
    Image.init()  # loads all formats, as the first unknown file would

    def read(data: bytes) -> None:
        file.write_bytes(data)
        refused: ImageError | None = None
        for reader in (image_size, count_pages, read_image, read_label_image, read_label_colours):
            try:
                reader(file)
            except ImageError as error:
                refused = error
        if refused is not None:
            raise refused

    return read


def _shard(folder: Path) -> Read:
    return lambda data: index.build_index(io.BytesIO(data), "shard.tar")


def _shard_index(folder: Path) -> Read:
    shard = folder / "shard.tar"
    shard.write_bytes(corpus.shards()[0])
    file = index.index_path(shard)

    def read(data: bytes) -> None:
        file.write_bytes(data)
        index.load_table(file)
        index.load_samples(file)
        index.cached_table.cache_clear()
        read_image(f"{shard}#a.png")

    return read


def _columns(folder: Path) -> Read:
    file = folder / "input"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        for array in open_columns(file).arrays.values():
            array.sum()

    return read


_IMAGE = (ImageError,)
_PICTURE_MB = 1100.0
"""The largest picture that is read, of 2^27 pixels, as some formats hold it in a few bytes."""
_BOUNDARIES_MB = 600.0
"""Two masks of 2^27 pixels, a byte each, and what their boundaries are made in."""
_FORMAT = (FormatError, ImageError)
_SCORES = (GroundTruthError, ResultsError)

TARGETS: dict[str, Target] = {
    "config": Target(
        (ConfigError,), lambda: corpus.texts("config"), _config, share=3, names_files=True
    ),
    "stored config": Target(
        (ConfigError,), lambda: corpus.texts("stored"), _stored_config, share=3
    ),
    "settings": Target(
        (ConfigError,),
        lambda: [b"train.epochs=3", b"model.mask_head={name: unet, depth: 2}\ndata.workers=0",
                 b"data.train_transforms.0.sizes=[1, 2]\ntrain={}", b"output=${HOME:-x}"],
        _settings, share=3,
    ),
    "COCO": Target((AnnotationError,), lambda: corpus.texts("coco"), _coco, mutate.change_json, 8),
    "run lengths": Target((SegmentationError,), corpus.run_lengths, _run_lengths, share=30),
    "VOC": Target(_FORMAT, lambda: corpus.texts("voc"), _voc, share=8),
    "LabelMe": Target(_FORMAT, lambda: corpus.texts("labelme"), _labelme, mutate.change_json, 8),
    "VIA": Target(_FORMAT, lambda: corpus.texts("via"), _via, mutate.change_json, 6),
    "YOLO": Target(_FORMAT, lambda: corpus.texts("yolo"), _yolo, share=8),
    "YOLO names": Target(_FORMAT, lambda: corpus.texts("yolo_names"), _yolo_names),
    "shard": Target((ShardError,), corpus.shards, _shard),
    "shard index": Target(
        (ShardError, ImageError), corpus.shard_indices, _shard_index, mutate.change_safetensors
    ),
    "columns": Target((ColumnsError,), corpus.columns, _columns, share=3),
    "results": Target(_SCORES, lambda: corpus.texts("results"), _results, mutate.change_json, 8),
    "ground truth": Target(
        _SCORES, lambda: corpus.texts("coco"), _ground_truth, mutate.change_json
    ),
    "boundaries": Target(
        _SCORES, corpus.boundaries, _boundaries, mutate.change_json, 3, megabytes=_BOUNDARIES_MB
    ),
    "checkpoint": Target(
        (CheckpointError,), corpus.checkpoints, _checkpoint, mutate.change_safetensors, 6
    ),
    "weights": Target(
        (CheckpointError,), corpus.weights, _weights(".safetensors"), mutate.change_safetensors, 6
    ),
    "torch file": Target((CheckpointError,), corpus.torch_files, _weights(".pth"), share=5),
    "PNG": Target(_IMAGE, corpus.pngs, _image, mutate.change_png, 10, megabytes=_PICTURE_MB),
    "TIFF": Target(_IMAGE, corpus.tiffs, _image, share=8, megabytes=_PICTURE_MB),
    "other images": Target(_IMAGE, corpus.other_images, _image, share=8, megabytes=_PICTURE_MB),
}  # fmt: skip
