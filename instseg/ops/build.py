"""Compile the kernels of ``csrc/`` into shared libraries beside this file.

    python -m instseg.ops.build

One library holds the CPU kernels, another, made where ``nvcc`` is found and torch is built for
CUDA, those for GPUs. Both are built against LibTorch's stable ABI and know nothing of Python: one
build serves every torch from 2.11 on. The compilers are ``CXX`` (if only ``CC`` is set, that; else
``g++``) and ``NVCC`` (``nvcc``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = Path(__file__).parent
CPU_LIBRARY = "_instseg_cpu.so"
CUDA_LIBRARY = "_instseg_cuda.so"
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi")
# The inner loops, once for each instruction set; the processor's own is chosen at run time.
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
}
# Results of these are held equal bit by bit to those of plain PyTorch, which rounds every product.
EXACT = ("masks_to_rle.cpp",)
ARCHITECTURES = (
    *("-gencode", "arch=compute_80,code=sm_80"),
    *("-gencode", "arch=compute_90,code=[sm_90,compute_90]"),
)


class BuildError(RuntimeError):
    """The compiler is missing or refused; the text holds what it said."""


def sources() -> Path:
    """The folder of the sources: in a checkout at the top, installed within the package."""
    for folder in (PACKAGE.parents[1] / "csrc", PACKAGE.parent / "_csrc"):
        if (folder / "schemas.cpp").is_file():
            return folder
    raise BuildError(f"no csrc folder beside or in {PACKAGE.parent}")


def build_cpu(target: Path, extra: Sequence[str] = ()) -> Path:
    """Compile the CPU library into the folder ``target``.

    Args:
        target: where the library goes; one that is there is replaced when all went well.
        extra: more flags for the compiler and the linker, e.g. ``-fsanitize=address``.

    Raises:
        BuildError: there is no working compiler.
    """
    compiler, linker = _compiler()
    include, lib = _torch_folders()
    folder = sources()
    common = (*FLAGS, TARGET, *(f"-isystem{path}" for path in include), *extra)
    jobs: list[tuple[Path, tuple[str, ...]]] = []
    for source in sorted([*folder.glob("*.cpp"), *folder.glob("cpu/*.cpp")]):
        if source.name == "kernels.cpp":
            x86 = platform.machine().lower() in ("x86_64", "amd64")
            for name, flags in INSTRUCTION_SETS.items():
                if x86 or name == "baseline":
                    jobs.append((source, (f"-DINSTSEG_ISA={name}", *flags)))
        else:
            jobs.append((source, ("-ffp-contract=off",) if source.name in EXACT else ()))
    with tempfile.TemporaryDirectory() as scratch:
        objects = [str(Path(scratch) / f"{i}.o") for i in range(len(jobs))]
        commands = [
            [*compiler, *common, *flags, "-c", str(source), "-o", output]
            for (source, flags), output in zip(jobs, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        made = Path(scratch) / CPU_LIBRARY
        link = ["-shared", *extra, *objects, "-o", str(made), f"-L{lib}", "-ltorch_cpu"]
        _run([*linker, *link])
        return _put(made, target)


def build_cuda(target: Path) -> Path | None:
    """Compile the CUDA library into the folder ``target``; None where there is no ``nvcc``.

    Raises:
        BuildError: ``nvcc`` refused.
    """
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc"))
    if nvcc is None or not _torch_has_cuda():
        return None
    include, lib = _torch_folders()
    files = [str(path) for path in sorted(sources().glob("cuda/*.cu"))]
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / CUDA_LIBRARY
        _run(
            [
                *(nvcc, "-O3", "-std=c++17", "-shared", TARGET, "-DUSE_CUDA", *ARCHITECTURES),
                *("-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", str(os.cpu_count())),
                *(f"-I{path}" for path in include),
                *files,
                *("-o", str(made), f"-L{lib}", "-ltorch_cpu", "-ltorch_cuda"),
            ]
        )
        return _put(made, target)


def build_all(target: Path) -> list[Path]:
    """Compile what can be compiled here into the folder ``target``.

    Raises:
        BuildError: the CPU library, or the CUDA library where there is ``nvcc``, cannot be made.
        ImportError: there is no torch to build against.
    """
    libraries = [build_cpu(target), build_cuda(target)]
    return [path for path in libraries if path is not None]


def _torch_folders() -> tuple[list[str], str]:
    import torch
    from torch.utils import cpp_extension

    return cpp_extension.include_paths(), str(Path(torch.__file__).parent / "lib")


def _torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None


def _compiler() -> tuple[list[str], list[str]]:
    """The commands that compile and that link C++."""
    if "CXX" not in os.environ and "CC" in os.environ:
        # A compiler chosen for C is what a user who sets only CC means for C++ too.
        cc = os.environ["CC"].split()
        return [*cc, "-xc++"], [*cc, "-lstdc++"]
    cxx = os.environ.get("CXX", "g++").split()
    return cxx, cxx


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise BuildError(f"{' '.join(command)}\n{said}")


def _put(made: Path, target: Path) -> Path:
    """Move a library to its place in one step: a process that has the old one open keeps it."""
    place = target / made.name
    staged = target / f".{made.name}.{os.getpid()}"
    shutil.copyfile(made, staged)
    staged.replace(place)
    return place


def main() -> int:
    """Build beside this file; 1 if that fails."""
    try:
        for path in build_all(PACKAGE):
            print(path)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
