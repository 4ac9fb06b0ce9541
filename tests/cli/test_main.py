"""`instseg COMMAND`, the scripts in `tools/`, and what an error looks like from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instseg import __version__
from instseg.cli import common
from instseg.cli.main import main
from instseg.config.loader import ConfigError
from instseg.engine.errors import CheckpointError

from .tiny import line_of, write_config

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["train", "eval", "predict", "dataset", "convert-weights", "demo"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    captured = capsys.readouterr()
    assert all(f"\n  {name} " in captured.out for name in COMMANDS)
    assert captured.err == ""


@pytest.mark.parametrize("argv", [[], ["trian"], ["--verbose"]])
def test_unknown_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: instseg COMMAND" in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: instseg {command} ")


def test_a_command_gets_its_arguments(
    tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, shapes, ("neck:", "nekc:"))
    assert main(["train", "--config", str(config)]) == 2
    assert "unknown key 'nekc'" in capsys.readouterr().err
    annotations = shapes / "val" / "annotations.json"
    assert (
        main(["dataset", "check", str(annotations), "--images", str(annotations.parent / "images")])
        == 0
    )


@pytest.mark.parametrize(
    "error", [ConfigError("why"), CheckpointError("why"), OSError("why"), FileNotFoundError("why")]
)
def test_expected_errors_are_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise error

    assert common.run(command) == 2
    assert capsys.readouterr() == ("", "error: why\n")


def test_defects_keep_their_traceback() -> None:
    def command() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        common.run(command)


def test_a_script_from_outside(tmp_path: Path, shapes: Path) -> None:
    config = write_config(tmp_path, shapes, ("epochs: 6", "epochs: six"))
    argv = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tmp_path)
    line = line_of(config, "epochs: six")
    expected = f"error: {line}: train.epochs: expected an integer, got 'six'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("train_net", "train"),
        ("eval_coco", "evaluate"),
        ("predict", "predict"),
        ("dataset", "dataset"),
        ("convert_weights", "convert_weights"),
    ],
)
def test_every_script_calls_its_command(
    script: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"instseg.cli.{module}.main", lambda: 7)
    code = compile((ROOT / "tools" / f"{script}.py").read_text(), script, "exec")
    with pytest.raises(SystemExit) as exit_:
        exec(code, {"__name__": "__main__"})
    assert exit_.value.code == 7
