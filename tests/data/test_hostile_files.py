"""Files made to harm or mislead a reader; each was a fault that fuzzing found (tests/fuzz)."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config
from instseg.data.columns import ColumnsError, open_columns
from instseg.data.defects import annotation_defects
from instseg.data.formats import FormatError, labelme, voc, yolo
from instseg.data.image_io import ImageError, count_pages, image_size, read_image, read_label_image
from instseg.evaluation.json_file import read_json
from instseg.ops import rle
from tests.fuzz import corpus, mutate

DIGITS = "9" * 5000
"""Python refuses to read an integer of so many."""


@pytest.mark.parametrize("encoding", ["UTF-99", "shift_jis"])
def test_xml_in_an_encoding_that_is_not_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "a.jpg").touch()
    (tmp_path / "Annotations").mkdir()
    text = corpus.text("voc", "sound.xml").replace(b"UTF-8", encoding.encode())
    (tmp_path / "Annotations" / "a.xml").write_bytes(text)
    with pytest.raises(FormatError, match=r"a\.xml: not a plain XML file"):
        voc.read(tmp_path)


def test_json_with_an_endless_number(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(f'{{"shapes": [{DIGITS}]}}')
    with pytest.raises(FormatError, match=r"a\.json: not JSON"):
        labelme.read(tmp_path)
    with pytest.raises(ZeroDivisionError, match=r"a\.json: cannot be read as JSON"):
        read_json(file, ZeroDivisionError)  # type: ignore[arg-type]


@pytest.mark.parametrize("edge", [[1e17, 0], [1e200, 0], [-1.7e308, 1.7e308]])
def test_a_circle_beyond_all_measure(tmp_path: Path, edge: list[float]) -> None:
    shape = {"label": "x", "shape_type": "circle", "points": [[1.7e308, 2], edge]}
    small = {**shape, "points": [[3, 2], [1e17, 2]]}
    content = {"imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 4, "shapes": [small]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (annotation,) = labelme.read(tmp_path)["annotations"]
    assert len(annotation["segmentation"][0]) == 720
    assert annotation["bbox"][2] == pytest.approx(2e17)
    (tmp_path / "a.json").write_text(json.dumps(content | {"shapes": [small, shape]}))
    with pytest.raises(FormatError, match=r"a\.json: shapes\[1\]: .* too large to compute with"):
        labelme.read(tmp_path)


def test_names_are_the_texts_that_stand_there(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("names: {0: no, 1: 1.50, 2: 2024-13-45, 3: !!int x}")
    assert yolo.read_names(file) == ["no", "1.50", "2024-13-45", "x"]
    file.write_text("a: &a [x]\nnames: [*a]")
    with pytest.raises(FormatError, match="names alone, no lists"):
        yolo.read_names(file)


def test_a_class_of_endless_digits(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text(f"{DIGITS} 0.5 0.5 0.5 0.5")
    with pytest.raises(FormatError, match=r"a\.txt: line 1: class '9+' is not a number from 0"):
        yolo.read(tmp_path / "images", tmp_path / "labels", names=["fig"])


def test_an_override_of_an_endless_index(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(corpus.text("config", "small.yaml"))
    with pytest.raises(ConfigError, match=r"is a list: expected an index from 0 to 1, got '9+"):
        load_config(path, Config, [f"data.train_transforms.{DIGITS}.p=1"])


def test_an_index_with_a_header_of_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(corpus.columns()[0][:8] + bytes(100))
    with pytest.raises(ColumnsError, match="the header is damaged"):
        open_columns(path)


def test_a_png_whose_chunk_claims_more_than_there_is(tmp_path: Path) -> None:
    """OpenCV would take 4 GB and 10 s."""
    path = tmp_path / "a.png"
    data = corpus.saved(Image.fromarray(corpus.picture()), "PNG")
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + b"\xff\0\0\0" + data[place + 4 :])
    with pytest.raises(ImageError, match=r"a\.png: the file is cut short"):
        read_image(path)
    path.write_bytes(data + b"bytes behind the end, as some cameras leave them")
    assert np.array_equal(read_image(path), corpus.picture())


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_headers_of_more_pixels_than_the_bytes_can_hold(tmp_path: Path, kind: str) -> None:
    """Pillow made a picture of 112 million pixels from a PNG of 300 bytes: zeros, silently."""
    path = tmp_path / "a"
    data = bytearray(corpus.saved(Image.new("L", (20, 20)), kind))
    place = 16 if kind == "PNG" else data.index(b"\xff\xc0") + 5
    sides = struct.pack(">II" if kind == "PNG" else ">HH", 2000, 1999)
    data[place : place + len(sides)] = sides
    if kind == "PNG":
        data = bytearray(mutate.with_checksums(bytes(data)))
    path.write_bytes(data)
    for read in (image_size, read_image, read_label_image):
        with pytest.raises(ImageError, match="cut short: too few bytes"):
            read(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_the_best_compression_of_one_colour_is_believed(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (2000, 1500)).save(path, compress_level=9)
    assert image_size(path) == (1500, 2000)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_shortest_jpeg_is_believed(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    options = {"progressive": progressive, "optimize": True, "quality": 1, "subsampling": 2}
    Image.new(mode, (2000, 1500)).save(path, **options)
    assert read_image(path).shape == (1500, 2000, 3)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_whose_pages_form_a_loop(tmp_path: Path, big: bool) -> None:
    """tifffile would follow it for ever; a stack that ends is read as before."""
    path = tmp_path / "a.tif"
    path.write_bytes(corpus.looping_tiff(bigtiff=big))
    for read in (image_size, count_pages, read_image, read_label_image):
        with pytest.raises(ImageError, match=r"a\.tif: its chain of pages is a loop"):
            read(path)
    tifffile.imwrite(path, np.zeros((150, 6, 8), np.uint8), photometric="minisblack", bigtiff=big)
    assert count_pages(path) == 150


@given(st.lists(st.tuples(st.floats(-9, 15), st.floats(-9, 15)), min_size=3, max_size=5))
def test_only_polygons_without_pixels_count_as_outside(points: list[tuple[float, float]]) -> None:
    """What the record's rule leaves out, COCO's rasteriser leaves empty."""
    size = (6, 5)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 6], "area": 1}
    annotation |= {"iscrowd": 0, "segmentation": [[v for point in points for v in point]]}
    codes = [
        defect.code
        for defect in annotation_defects(
            annotation, "", sizes={1: size}, categories={1}, file="", need_masks=True
        )
    ]
    assert codes in ([], ["mask-empty"])
    if codes:
        assert rle.area(rle.from_polygons([np.array(points)], size)) == 0
    xs, ys = zip(*points, strict=True)
    if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= 5 or min(ys) >= 6:
        assert codes == ["mask-empty"]
