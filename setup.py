"""Builds torchcalc/_C (CPU kernels) and torchcalc/_cuda.so (CUDA kernels).

The metadata is in pyproject.toml, what is known of compilers in build_support.py.

Environment variables:
  TORCHCALC_CUDA        1: build _cuda.so, an error without nvcc; 0: do not build it;
                        unset: build it where torch has CUDA and nvcc is found
  TORCH_CUDA_ARCH_LIST  the GPUs to build for, default "8.0+PTX;9.0a;10.0;12.0" as far as nvcc knows
                        them; one of them alone, such as 9.0, compiles in less than half of the time
  CUDA_HOME             the CUDA toolkit, default: nvcc on PATH, then /usr/local/cuda
  MAX_JOBS              compilers at a time, default: the number of cores
  CXX                   the C++ compiler, also nvcc's
  CXXFLAGS, LDFLAGS     more flags for _C (for _cuda.so, nvcc itself reads NVCC_APPEND_FLAGS)
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pip leaves it out
from build_support import BuildError, build_native, cpu_sources, cuda_sources

# setuptools before 77, which GPU machines may have, refuses a pyproject.toml with an expression.
OLD = int(setuptools.__version__.split(".")[0]) < 77
LICENSE = {"license" if OLD else "license_expression": "Apache-2.0"}


def short_name(ext):
    return ext.name.rpartition(".")[2]


class Build(build):
    def run(self):
        # A wheel is whatever lies in build_lib: keep nothing there of earlier builds.
        shutil.rmtree(Path(self.build_lib, "torchcalc"), ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    def run(self):
        # Not build_temp: for an editable install that is a new directory each time.
        base = Path(self.get_finalized_command("build").build_base)
        out = base / "native" / sysconfig.get_config_var("SOABI")
        try:
            self.built = build_native(out, self.distribution.get_version())
        except BuildError as error:
            raise SystemExit(f"torchcalc: error: {error}") from None
        if self.inplace and "_cuda" not in self.built:
            Path("torchcalc/_cuda.so").unlink(missing_ok=True)  # left from before, and stale
        self.extensions = [ext for ext in self.extensions if short_name(ext) in self.built]
        super().run()

    def build_extension(self, ext):
        target = self.get_ext_fullpath(ext.name)
        self.mkpath(os.path.dirname(target))
        self.copy_file(str(self.built[short_name(ext)]), target)

    def get_ext_filename(self, fullname):
        if fullname.endswith("_cuda"):  # holds no Python, so its name says no Python version
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension("torchcalc._C", cpu_sources()),
            Extension("torchcalc._cuda", cuda_sources()),
        ],
        cmdclass={"build": Build, "build_ext": BuildExt},
        **LICENSE,
    )
