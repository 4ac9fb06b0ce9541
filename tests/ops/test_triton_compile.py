"""Where the Triton kernels work, and that they compile: neither needs a GPU or the interpreter."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from instseg.ops import _triton


def test_it_says_where_it_does_not_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch.cuda.is_available()" in _triton.why_not("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _triton.why_not("cuda") is None
    assert "CUDA" in _triton.why_not("mps")


def test_cpu_tensors_need_the_interpreter():
    code = "from instseg.ops import _triton; print(_triton.why_not('cpu'))"
    reason = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "set TRITON_INTERPRET=1 before" in reason


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class H100:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

driver.set_active(H100())
compiled = []

def compile_only(self, grid):
    def launch(*args, **options):
        kernel = self.run(*args, grid=grid, warmup=True, **options)
        compiled.append((self.fn.__name__, len(kernel.asm["cubin"])))
    return launch

triton.JITFunction.__getitem__ = compile_only
from instseg.ops._triton import KERNELS

maps = [torch.zeros(2, 32, 16 >> i, 24 >> i) for i in range(2)]
rois, levels = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
for layout in (torch.contiguous_format, torch.channels_last):
    maps = [m.contiguous(memory_format=layout) for m in maps]
    KERNELS["roi_align"](maps, rois, levels, [0.5, 0.25], (7, 7), 2, True)
KERNELS["roi_align"]([maps[0].half()], rois, None, [0.3], (7, 7), 0, False)
sizes = [(16, 24), (8, 12)]
grad = torch.zeros(3, 32, 7, 7)
KERNELS["roi_align_backward"](grad, rois, levels, [0.5, 0.25], 2, True, 2, sizes, True)
KERNELS["nms"](torch.zeros(70, 4), torch.zeros(70), torch.zeros(70, dtype=torch.int64), 0.5)
x = torch.zeros(64)
KERNELS["sigmoid_focal_loss"](x, x, 0.25, 2.0)
KERNELS["sigmoid_focal_loss_backward"](torch.zeros(()).expand(64), x, x, 0.25, 1.5)
assert all(size > 0 for _, size in compiled)
print(sorted({name for name, _ in compiled}))
"""


def test_the_kernels_compile_for_a_gpu():
    """What the interpreter accepts need not compile; compiling needs no GPU."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "['_backward', '_forward', '_locate', '_overlaps', '_walk']"
