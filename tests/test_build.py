"""What setup.py says where something is missing, and how it reads its settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # build_support is part of the checkout, not of the package

from build_support import BuildError, cuda_sources, default_archs, gencode_flags  # noqa: E402

pytestmark = pytest.mark.no_kernels

SETTINGS = ("CUDA_HOME", "CXX", "MAX_JOBS", "TORCHCALC_CUDA", "TORCH_CUDA_ARCH_LIST")
RUN_SETUP = """
import runpy, sys
for module in sys.argv.pop(1).split():
    sys.modules[module] = None  # importing it fails
sys.argv[0] = "setup.py"
runpy.run_path("setup.py", run_name="__main__")
"""


def script(path: Path, output: str) -> Path:
    """An executable that prints `output`, whatever its arguments are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def build_error(tmp_path):
    """Runs setup.py with a torch that has only a version; returns the one line it writes."""

    def run(torch="2.13.0", cuda=None, without="", **env):
        fake = tmp_path / "site" / "torch"
        fake.mkdir(parents=True)
        (fake / "__init__.py").touch()
        (fake / "version.py").write_text(f"__version__ = {torch!r}\ncuda = {cuda!r}\n")
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        done = subprocess.run(
            [sys.executable, "-c", RUN_SETUP, without, "--quiet", "build_ext"],
            cwd=ROOT,
            env={**kept, "PYTHONPATH": str(tmp_path / "site"), "PYTHONWARNINGS": "ignore", **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("torchcalc: error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    return run


def test_no_compiler(build_error):
    message = build_error(CXX="/nonexistent/g++")
    assert "no C++ compiler: CXX=/nonexistent/g++ is not an executable" in message


def test_no_compiler_on_path(build_error, tmp_path):
    pytest.importorskip("ninja")  # the program would be missed first
    assert "install g++ >= 11 or clang++ >= 14" in build_error(PATH=str(tmp_path))


@pytest.mark.parametrize(
    ("macros", "expected"),
    [
        ("#define __GNUC__ 10", "GCC 10; C++20 needs GCC >= 11"),
        ("#define __GNUC__ 4\n#define __clang_major__ 13", "Clang 13; C++20 needs Clang >= 14"),
        ("", "neither GCC nor Clang"),
    ],
)
def test_compiler_without_cxx20(build_error, tmp_path, macros, expected):
    assert expected in build_error(CXX=str(script(tmp_path / "c++", macros)))


@pytest.mark.parametrize("module", ["torch", "pybind11"])
def test_missing_module(build_error, module):
    assert f"{module} is not installed for this Python" in build_error(without=module)


def test_missing_ninja(build_error, tmp_path):
    assert "ninja is not installed" in build_error(without="ninja", PATH=str(tmp_path))


def test_old_torch(build_error):
    assert "torch 2.9.1+cpu is too old; torchcalc needs torch >= 2.10" in build_error("2.9.1+cpu")


@pytest.mark.parametrize("jobs", ["0", "all"])
def test_bad_max_jobs(build_error, jobs):
    assert f"MAX_JOBS={jobs} is not a positive number" in build_error(MAX_JOBS=jobs)


needs_cuda_sources = pytest.mark.skipif(not cuda_sources(), reason="there are no CUDA kernels yet")


@needs_cuda_sources
def test_no_nvcc(build_error):
    message = build_error(TORCHCALC_CUDA="1", CUDA_HOME="/nonexistent")
    assert "TORCHCALC_CUDA=1, but there is no /nonexistent/bin/nvcc; set CUDA_HOME" in message


@needs_cuda_sources
@pytest.mark.parametrize(
    ("release", "cuda", "expected"),
    [
        ("release 11.8, V11.8.89", None, "is CUDA 11.8; C++20 needs CUDA >= 12.0"),
        ("release 12.4, V12.4.1", "13.0", "is CUDA 12.4, but torch was built with CUDA 13.0"),
        ("no version", None, "names no CUDA release"),
    ],
)
def test_unfit_nvcc(build_error, tmp_path, release, cuda, expected):
    script(tmp_path / "cuda" / "bin" / "nvcc", release)
    message = build_error(cuda=cuda, TORCHCALC_CUDA="1", CUDA_HOME=str(tmp_path / "cuda"))
    assert expected in message


@needs_cuda_sources
def test_unknown_cuda_setting(build_error):
    assert "TORCHCALC_CUDA=yes means nothing" in build_error(TORCHCALC_CUDA="yes")


@needs_cuda_sources
def test_unknown_arch(build_error, tmp_path):
    script(tmp_path / "cuda" / "bin" / "nvcc", "release 13.0, V13.0.88")
    cuda = {"TORCHCALC_CUDA": "1", "CUDA_HOME": str(tmp_path / "cuda")}
    assert "holds 'Hopper'; write 8.0" in build_error(TORCH_CUDA_ARCH_LIST="8.0 Hopper", **cuda)


def test_default_archs(tmp_path):
    known = ["sm_75", "sm_80", "sm_90", "sm_90a"]
    of_cuda_12 = default_archs(str(script(tmp_path / "12", "\n".join(known))))
    assert gencode_flags(of_cuda_12) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]
    of_cuda_13 = default_archs(
        str(script(tmp_path / "13", "\n".join([*known, "sm_100", "sm_120"])))
    )
    assert gencode_flags(of_cuda_13) == [
        *gencode_flags(of_cuda_12),
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_120,code=sm_120",
    ]


@pytest.mark.parametrize(
    "archs", ["8.6;12.0", "8.6 12.0", "8.6, 12.0", " 8.6;12.0; ", "8.6;12.0;8.6"]
)
def test_arch_separators(archs):
    assert gencode_flags(archs) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_120,code=sm_120",
    ]


@pytest.mark.parametrize("archs", ["90", "9", "Hopper", "9.0b", "9.0+SASS", "8.0;;x"])
def test_bad_archs(archs):
    with pytest.raises(BuildError, match="TORCH_CUDA_ARCH_LIST holds"):
        gencode_flags(archs)
