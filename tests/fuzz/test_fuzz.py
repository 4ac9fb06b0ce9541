"""The fuzzing of all readers with a few inputs each, and the harness against readers that fail."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instseg.config.loader import ConfigError, load_config, parse_config
from instseg.config.schema import Config
from instseg.data.coco import AnnotationError, SegmentationError, load_coco, parse_segmentation
from instseg.data.index import build_index
from instseg.ops import rle

from . import mutate
from .__main__ import main
from .runner import Report, examine, make_inputs
from .targets import TARGETS, Read, Target


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(name: str) -> None:
    target = TARGETS[name]
    report = examine(target, make_inputs(name, target, 8 * target.share, seed=1))
    assert [problem for *_, problem in report.failures] == []
    assert report.inputs == 8 * target.share + len(target.corpus())
    assert 0 < report.refused < report.inputs  # sound inputs are among them, and broken ones


def test_the_command_counts_and_keeps_what_it_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--inputs", "30", "--failures", str(tmp_path / "found"), "--targets"]
    assert main([*argv, "run lengths", "VIA"]) == 0
    *_, row, last = capsys.readouterr().out.splitlines()
    assert row.split()[0] == "VIA"
    assert last.endswith("inputs, 0 findings")
    assert not (tmp_path / "found").exists()
    monkeypatch.setitem(TARGETS, "VIA", replace(TARGETS["VIA"], errors=()))
    assert main([*argv, "VIA"]) == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last.endswith("findings")
    kept = sorted((tmp_path / "found").glob("*.bin"))
    assert kept
    assert "FormatError" in kept[0].with_suffix(".txt").read_text()


def test_inputs_are_the_same_for_every_count() -> None:
    target = TARGETS["COCO"]
    few = dict(make_inputs("COCO", target, 10, seed=3))
    many = dict(make_inputs("COCO", target, 30, seed=3))
    assert few.items() <= many.items()
    assert few != dict(make_inputs("COCO", target, 10, seed=4))


def outcome(read: Read, **changes: object) -> Report:
    """What the harness says of a reader given the inputs "good" and "bad"."""
    target = Target((KeyError,), lambda: [b"good"], lambda folder: read)
    return examine(replace(target, **changes), [(0, b"good"), (1, b"bad")])  # type: ignore[arg-type]


def on_bad(act: Callable[[], object]) -> Read:
    return lambda data: act() if data == b"bad" else None


def raise_key_error() -> None:
    raise KeyError("no")


def hang() -> None:
    while True:
        pass


def connect() -> None:
    with socket.socket() as s:
        s.connect_ex(("127.0.0.1", 9))


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: 1 // 0, "ZeroDivisionError"),
    (lambda: os._exit(3), "ended the process with 3"),
    (lambda: os.abort(), "ended the process with -6"),
    (hang, "took more than 1 s"),
    (lambda: bytearray(os.urandom(1)) * 300_000_000, "MB of memory"),
    (lambda: Path("/etc/hostname").read_bytes(), "did open('/etc/hostname'"),
    (lambda: Path("../../x").mkdir(), "did os.mkdir"),
    (lambda: os.system("true"), "did os.system"),
    (lambda: subprocess.run(["true"], check=False), "did subprocess.Popen"),
    (connect, "socket.connect("),
    (lambda: eval("1 + 1"), "did compile"),
]


@pytest.mark.parametrize(("act", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_the_harness_notices(act: Callable[[], object], problem: str) -> None:
    """Otherwise its silence would say nothing."""
    (failure,) = outcome(on_bad(act), seconds=1.0).failures
    number, data, what = failure
    assert (number, bytes.fromhex(data)) == (1, b"bad")
    assert problem in what


def test_the_harness_lets_pass_what_is_right() -> None:
    report = outcome(on_bad(raise_key_error))
    assert (report.inputs, report.refused, report.failures) == (2, 1, [])
    inside = outcome(on_bad(lambda: Path("x").write_text("in its own folder")))
    assert (inside.refused, inside.failures) == (0, [])
    named = outcome(on_bad(lambda: Path("/etc/bad").exists()), names_files=True)
    assert named.failures == []


@pytest.mark.parametrize(
    "change", [mutate.change_json, mutate.change_png, mutate.change_safetensors]
)
def test_changes_change_inputs_of_every_kind(change: mutate.Mutator) -> None:
    inputs: Sequence[bytes] = [b'{"a": [1, {"b": "{\\"c\\": 2}"}]}', b"", b"\x89PNG", bytes(40)]
    for data in inputs:
        made = {change(Random(i), data, inputs) for i in range(200)}
        assert len(made) > 20


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 10**400, -1, 0]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
SEGMENTATIONS = st.one_of(
    VALUES,
    st.lists(st.lists(NUMBERS, max_size=9), max_size=3),
    st.fixed_dictionaries(
        {
            "size": st.just([6, 5]) | VALUES,
            "counts": st.lists(NUMBERS, max_size=6) | st.text(max_size=12) | VALUES,
        }
    ),
)


@given(SEGMENTATIONS)
@settings(max_examples=200)
def test_any_segmentation_is_a_mask_or_refused(value: object) -> None:
    try:
        mask = parse_segmentation(value, (6, 5))
    except SegmentationError:
        return
    code = mask if isinstance(mask, dict) else rle.from_polygons(mask, (6, 5))
    assert rle.decode(code).shape == (6, 5)


RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from(
            ["id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area", "name",
             "file_name", "width", "height"]
        ),
        st.integers(0, 3) | VALUES | st.lists(NUMBERS, min_size=4, max_size=4),
    )
    | VALUES,
    max_size=4,
)  # fmt: skip


@given(RECORDS, RECORDS, RECORDS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_coco_records_are_indexed_or_refused(
    tmp_path: Path, images: list[object], annotations: list[object], categories: list[object]
) -> None:
    sound = {"id": 3, "file_name": "a.png", "width": 5, "height": 6}
    (tmp_path / "a.png").touch()
    coco = {
        "images": [*images, sound],
        "annotations": annotations,
        "categories": [*categories, {"id": 2, "name": "x"}],
    }
    for masks in (False, True):
        try:
            index = build_index(coco, tmp_path, source="x.json", need_masks=masks)
        except AnnotationError:
            continue
        for record in index.records:
            assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()


@given(st.binary(max_size=60))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_as_annotations_and_configuration(
    tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "x"
    file.write_bytes(data)
    with pytest.raises(AnnotationError, match=str(file)):
        load_coco(file)
    with pytest.raises(ConfigError, match=str(file)):
        load_config(file, Config)


@given(st.dictionaries(st.sampled_from(["model", "data", "train", "output", "x"]), VALUES))
@settings(max_examples=100)
def test_any_values_are_refused_as_configuration(content: dict[str, object]) -> None:
    text = yaml.safe_dump(content)
    with pytest.raises(ConfigError):
        parse_config(text, Config, source="x")
