"""Comparisons, slices, other metrics and parameters, and two processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instseg.cli.evaluate import main

from ..evaluation.test_backends import random_sets
from .tiny import rows


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Ground truth, the results of a model, and of one that loses every third detection."""
    truth, found = random_sets(8)
    values = {"gt": truth, "a": found, "b": [r for i, r in enumerate(found) if i % 3]}
    for name, value in values.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return {name: str(tmp_path / f"{name}.json") for name in values}


def test_comparison(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    argv = ["--gt", files["gt"], "--compare", files["a"], files["b"], "--json", str(out)]
    assert main([*argv, "--confidence", "0.9"]) == 0
    result = read(out)
    assert result.keys() == {"bbox", "segm"}
    for kind, comparison in result.items():
        for side, name in (("a", "a"), ("b", "b")):
            alone = tmp_path / f"{side}.out.json"
            assert main(["--gt", files["gt"], "--dt", files[name], "--json", str(alone)]) == 0
            ap = read(alone)[kind]["stats"]["AP"]
            assert comparison["stats"]["AP"][side] == pytest.approx(ap, abs=1e-12)
    shown = capsys.readouterr().out
    assert "90 % interval" in shown
    assert "Images that differ most in AP" in shown


def test_slices(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [i["id"] for i in read(Path(files["gt"]))["images"]]
    slices = tmp_path / "slices.json"
    slices.write_text(json.dumps({"few": ids[:2], "everything": ids}))
    argv = ["--gt", files["gt"], "--dt", files["a"], "--iou-type", "bbox"]
    assert main([*argv, "--slices", str(slices), "--json", str(tmp_path / "s.json")]) == 0
    shown = capsys.readouterr().out
    scores = read(tmp_path / "s.json")["bbox"]
    ap = scores["stats"]["AP"]
    assert scores["slices"]["everything"]["stats"]["AP"] == pytest.approx(ap, abs=1e-12)
    assert scores["slices"]["few"]["images"] == 2
    (line,) = (row for row in shown.splitlines() if "everything" in row)
    assert f"{ap:0.3f}" in line
    assert any("few" in row for row in shown.splitlines())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "slices.json: expected"),
        ('{"night": 3}', "slices.json: slice 'night' must be a list of image ids"),
        ('{"night": [999]}', r"the slice 'night' has unknown image ids \[999\]"),
        ('{"night": [', "slices.json: not valid JSON"),
    ],
)
def test_slices_that_cannot_be_used(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: str,
) -> None:
    slices = tmp_path / "slices.json"
    slices.write_text(text)
    argv = ["--gt", files["gt"], "--dt", files["a"], "--slices", str(slices)]
    assert main(argv) == 2
    assert re.search(words, capsys.readouterr().err)


def test_parameters(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    argv = ["--gt", files["gt"], "--dt", files["a"], "--json", str(out), "--iou-type", "boundary"]
    argv += ["--iou-thresholds", "0.5", "0.7", "--max-detections", "5", "50", "--class-agnostic"]
    assert main([*argv, "--area", "tiny", "0", "400", "--replicates", "0"]) == 0
    scores = read(out)["boundary"]
    assert list(scores["stats"]) == ["AP", "AP50", "APt", "AR5", "AR50", "ARt"]
    assert list(scores["per_category"]) == ["all"]
    assert scores["intervals"] == {}
    assert scores["params"]["areas"]["tiny"] == [0, 400]


@pytest.mark.parametrize("metric", ["voc", "lvis"])
def test_other_metrics(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    truth = read(Path(files["gt"]))
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    for category in truth["categories"]:
        category["frequency"] = "c"
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    Path(files["gt"]).write_text(json.dumps(truth))
    argv = ["--gt", files["gt"], "--dt", files["a"], "--metric", metric]
    assert main([*argv, "--json", str(tmp_path / "s.json")]) == 0
    scores = read(tmp_path / "s.json")["bbox"]
    assert ("AP11" if metric == "voc" else "APc") in scores["stats"]
    assert f"{scores['stats']['AP']:0.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gt", "g", "--compare", "a", "b", "--dt", "c"], "or --gt and --compare"),
        (["--gt", "g", "--compare", "a", "b", "--report", "r"], "belong to a single model"),
        (["--gt", "g", "--compare", "a", "b", "--replicates", "0"], "--compare needs replicates"),
        (["--gt", "g", "--dt", "d", "--metric", "voc", "--report", "r"], "--metric voc takes"),
        (["--gt", "g", "--dt", "d", "--metric", "lvis", "--iou-type", "boundary"], "lvis takes"),
        (["--gt", "g", "--dt", "d", "--images", "i"], "--images belongs to"),
        (["--config", "c", "--weights", "w", "--metric", "voc"], "--metric voc takes --gt"),
        (
            ["--gt", "g", "--dt", "d", "--iou-type", "boundary", "--report", "r"],
            "add bbox or segm",
        ),
        (["--gt", "g", "--dt", "d", "--replicates", "1"], "replicates must be 0 or at least 2"),
        (["--gt", "g", "--dt", "d", "--iou-thresholds", "0"], "iou_thresholds must lie in"),
        (["--gt", "g", "--dt", "d", "--area", "big", "9", "3"], "'big' must be (low, high)"),
        (["--gt", "g", "--dt", "d", "--area", "big", "9", "x"], "could not convert"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_score_what_one_does(trained: Path, tmp_path: Path) -> None:
    """The same figures, and the same records, with three batches for two processes."""
    common = ["--config", str(trained / "config.yaml"), "data.val_batch_size=2"]
    common += ["--weights", str(trained / "final.safetensors")]
    outputs = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        own = ["--json", str(folder / "s.json"), "--save-results", str(folder / "r.json")]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run(
            [sys.executable, *launch, "tools/eval_coco.py", *common, *own],
            check=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
        )
        outputs[processes] = read(folder / "s.json"), read(folder / "r.json")
    assert outputs[1] == outputs[2]
    assert outputs[1][0]["bbox"]["detections"] == len(outputs[1][1]) > 0
    last = rows(trained, "eval")[-1]
    assert outputs[2][0]["segm"]["stats"]["AP"] == pytest.approx(last["segm/AP"], abs=1e-6)
