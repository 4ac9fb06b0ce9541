from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from instseg import ops
from instseg.ops import backend

BOXES, SCORES = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), torch.tensor([0.2, 0.9])


def chosen(op: str, device: str = "cpu") -> str:
    """The package that runs an op, e.g. "_torch"."""
    return backend.kernel(op, torch.device(device)).__module__.split(".")[2]


def test_torch_is_always_there():
    assert "torch" in ops.available_backends()
    assert ops.available_backends("meta") == ("torch",)
    with ops.use_backend("torch"):
        assert chosen("nms") == "_torch"


def test_the_compiled_backend_comes_first_where_it_is_built():
    wanted = "_ext" if "ext" in ops.available_backends() else "_torch"
    assert chosen("roi_align") == chosen("masks_to_rle") == wanted
    assert chosen("ps_roi_align") == "_torch"


def test_the_innermost_block_counts_and_ends():
    before = chosen("nms")
    with ops.use_backend("torch"):
        with pytest.raises(RuntimeError, match="on purpose"), ops.use_backend("torch"):
            raise RuntimeError("on purpose")
        assert chosen("nms") == "_torch"
    assert chosen("nms") == before


def test_an_unknown_backend():
    with (
        pytest.raises(ops.BackendError, match=r"'cuda'.*choose from torch, ext, triton"),
        ops.use_backend("cuda"),
    ):
        pass


def test_a_backend_that_does_not_work_on_a_device(monkeypatch):
    monkeypatch.setattr(backend, "_why_not", lambda name, device: "it is blue")
    backend._choose.cache_clear()
    try:
        with (
            ops.use_backend("triton"),
            pytest.raises(ops.BackendError, match="triton backend cannot run nms on cpu: it is"),
        ):
            ops.nms(BOXES, SCORES, 0.5)
    finally:
        backend._choose.cache_clear()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "", **environment},
        cwd=backend.__file__[: backend.__file__.index("instseg")],
    )


CODE = """
import torch
from instseg.ops import backend, nms
nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(backend.kernel("nms", torch.device("cpu")).__module__)
"""


def test_the_variable_forces_one():
    done = run(CODE, INSTSEG_OPS="torch")
    assert done.stdout == "instseg.ops._torch.nms\n", done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cuda", "INSTSEG_OPS=cuda: no such backend, choose from torch, ext, triton"),
        ("triton", "the triton backend cannot run nms on cpu"),
    ],
)
def test_the_variable_naming_what_does_not_work(value, message):
    done = run(CODE, INSTSEG_OPS=value)
    assert done.returncode == 1
    assert message in done.stderr
