"""Metadata is in pyproject.toml; here the kernels of csrc/ are compiled and shipped.

Without torch at hand (an isolated build) or a working compiler the package installs without them,
and `python -m instseg.ops.build` adds them later. INSTSEG_BUILD_EXT=1 makes that an error,
INSTSEG_BUILD_EXT=0 does not try.
"""

import importlib.util
import os
import shutil
import warnings
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def load_build_module():
    """instseg/ops/build.py by itself: the package imports torch, which may be missing."""
    spec = importlib.util.spec_from_file_location("build_ops", HERE / "instseg/ops/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Copies Python files, then compiles the kernels to where these went."""

    def run(self):  # noqa: D102
        super().run()
        package = HERE / "instseg" if self.editable_mode else Path(self.build_lib) / "instseg"
        if not self.editable_mode:
            shutil.copytree(HERE / "csrc", package / "_csrc", dirs_exist_ok=True)
        wish = os.environ.get("INSTSEG_BUILD_EXT", "")
        if wish == "0":
            return
        build = load_build_module()
        try:
            build.build_all(package / "ops")
        except (ImportError, build.BuildError) as error:
            if wish == "1":
                raise
            warnings.warn(
                f"instseg is installed without compiled kernels ({error}). It works, more slowly; "
                "`python -m instseg.ops.build` adds them.",
                stacklevel=1,
            )


class PlatformWheel(bdist_wheel):
    """The libraries are of a platform, but of no version of Python."""

    def get_tag(self):  # noqa: D102
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    """Not pure Python."""

    def has_ext_modules(self):  # noqa: D102
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
)
