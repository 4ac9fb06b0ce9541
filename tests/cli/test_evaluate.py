"""`eval_coco.py` gives the training's own scores, and pycocotools' for any result file."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instseg.cli.evaluate import main
from instseg.data.synthetic import CLASSES
from instseg.evaluation.coco import METRIC_NAMES

from .tiny import rows

GT = "val/annotations.json"


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ``scores.json`` and ``results.json`` of the trained model."""
    folder = tmp_path_factory.mktemp("scored")
    config, weights = trained.parent / "tiny.yaml", trained / "final.safetensors"
    outputs = ["--json", str(folder / "scores.json")]
    outputs += ["--save-results", str(folder / "results.json")]
    assert main(["--config", str(config), "--weights", str(weights), *outputs]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_scores_are_those_of_the_training(trained: Path, scored: Path) -> None:
    last = rows(trained, "eval")[-1]
    scores = read(scored / "scores.json")
    for kind in ("bbox", "segm"):
        assert scores[kind]["stats"] == {name: last[f"{kind}/{name}"] for name in METRIC_NAMES}
        assert scores[kind]["images"] == 6
        assert list(scores[kind]["per_category"]) == list(CLASSES)
    assert scores["bbox"]["stats"]["AR100"] > 0


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scores_are_those_of_pycocotools(scored: Path, shapes: Path, kind: str) -> None:
    results = read(scored / "results.json")
    if kind == "segm":  # a box beside the mask would give its area to the mask
        results = [{k: v for k, v in record.items() if k != "bbox"} for record in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(shapes / GT))
        reference = COCOeval(truth, truth.loadRes(results), kind)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    stats = read(scored / "scores.json")[kind]["stats"]
    assert list(stats.values()) == pytest.approx(list(reference.stats), abs=1e-12)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_result_files_score_alike(
    scored: Path, shapes: Path, tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--gt", str(shapes / GT), "--dt", str(scored / "results.json"), "--backend", backend]
    assert main([*argv, "--json", str(tmp_path / "scores.json")]) == 0
    own, expected = read(tmp_path / "scores.json"), read(scored / "scores.json")
    for kind in ("bbox", "segm"):
        assert own[kind]["stats"] == pytest.approx(expected[kind]["stats"], abs=1e-12)
    shown = capsys.readouterr().out
    ap = expected["bbox"]["stats"]["AP"]
    line = "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]"
    assert f"{line} = {ap:0.3f}" in shown
    assert all(name in shown for name in CLASSES)

    assert main([*argv, "--iou-type", "bbox", "--json", str(tmp_path / "boxes.json")]) == 0
    assert read(tmp_path / "boxes.json").keys() == {"bbox"}


def test_a_perfect_result_file_scores_one(shapes: Path, tmp_path: Path) -> None:
    truth = read(shapes / GT)
    coco = COCO(str(shapes / GT))
    kept = ("image_id", "category_id", "bbox")
    perfect = [
        {k: a[k] for k in kept} | {"score": 1.0, "segmentation": _code(coco, a)}
        for a in truth["annotations"]
    ]
    (tmp_path / "dt.json").write_text(json.dumps(perfect))
    argv = ["--gt", str(shapes / GT), "--dt", str(tmp_path / "dt.json")]
    assert main([*argv, "--json", str(tmp_path / "scores.json")]) == 0
    scores = read(tmp_path / "scores.json")
    assert scores["bbox"]["stats"]["AP"] == pytest.approx(1)
    assert scores["segm"]["stats"]["AP"] == pytest.approx(1)


def _code(coco: COCO, annotation: dict[str, Any]) -> dict[str, Any]:
    code = coco.annToRLE(annotation)
    counts = code["counts"]
    return code | {"counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def test_overrides_choose_what_is_scored(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(trained / "config.yaml"), "--iou-type", "bbox"]
    argv += ["--weights", str(trained / "final.safetensors"), "--json", str(tmp_path / "s.json")]
    train = shapes / "train"
    argv += [f"data.val.annotations={train / 'annotations.json'}"]
    assert main([*argv, f"data.val.images={train / 'images'}", "model.box_head.samples=1"]) == 0
    scores = read(tmp_path / "s.json")
    assert scores.keys() == {"bbox"}
    assert scores["bbox"]["images"] == 8
    assert "bbox: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config and --weights, or --gt and --dt"),
        (["--config", "a.yaml"], "give --config and --weights, or --gt and --dt"),
        (["--gt", "a", "--dt", "b", "--weights", "c"], "or --gt and --dt"),
        (["--gt", "a", "--dt", "b", "data.val.images=x"], "belong to --config and --weights"),
        (["--gt", "a", "--dt", "b", "--save-results", "x"], "belong to --config and --weights"),
        (["--gt", "a", "--dt", "b", "--iou-type", "keypoints"], "invalid choice: 'keypoints'"),
        (["--gt", "a", "--dt", "b", "--backend", "mine"], "invalid choice: 'mine'"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
