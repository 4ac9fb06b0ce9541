"""The build itself: what is shipped was built by it when the package was installed."""

from __future__ import annotations

import os
import shutil

import pytest

from instseg.ops import build


def test_the_sources_are_found():
    assert (build.sources() / "cpu" / "kernels.cpp").is_file()


def test_without_a_compiler_nothing_is_lost(tmp_path, monkeypatch):
    (tmp_path / build.CPU_LIBRARY).write_text("the old one")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(build.BuildError, match=r"^false -xc\+\+ .*\nexit status 1"):
        build.build_cpu(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"no-such-compiler: No such file"):
        build.build_cpu(tmp_path)
    assert (tmp_path / build.CPU_LIBRARY).read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == [build.CPU_LIBRARY]


def test_main_says_what_failed(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main() == 1
    assert "error: no-such-compiler: No such file" in capsys.readouterr().err


def test_no_cuda_library_without_nvcc(tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC", "no-such-compiler")
    assert build.build_cuda(tmp_path) is None


@pytest.mark.skipif(shutil.which(os.environ.get("NVCC", "nvcc")) is None, reason="needs nvcc")
def test_the_cuda_library_is_there_where_nvcc_is():
    """Compiling it takes a minute: installing the package did."""
    if not (build.PACKAGE / build.CPU_LIBRARY).is_file():
        pytest.skip("installed without a compiler")
    assert (build.PACKAGE / build.CUDA_LIBRARY).is_file()
