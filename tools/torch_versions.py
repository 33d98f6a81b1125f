"""Builds torchcalc against several versions of torch, and loads its binaries in each.

pyproject.toml claims `torch>=2.10`, while everyday work sees one version. For each version:

  1. its wheel is fetched with pip, once, and installed into a virtual environment of its own;
  2. the C++ sources, and the CUDA ones where nvcc is found, are compiled against its headers;
  3. the binaries are loaded there, these and those built with the torch of this Python: import,
     _cuda.so (which finds its symbols in the real libtorch_cuda.so, so no GPU is needed), the
     derivatives of all ops, and torch.compile.

Prints each step and a table at the end; exit status 1 if anything failed. "other CUDA" there is
no failure: a _cuda.so is for torch with the same major version of CUDA. While a version is at work
it takes up to 8 GB; the wheel (0.5 to 0.9 GB) stays in the cache. No part of `make test`.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # build_support is part of the checkout, not of the package

import build_support  # noqa: E402
from build_support import BuildError, Torch  # noqa: E402

VERSIONS = ["2.10.0", "2.11.0", "2.12.1", "2.14.1"]
CORE_TESTS = "forward derivatives transforms tracing optim optim_changes optim_compile optim_groups"
TEST_PACKAGES = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
COLUMNS = ["_C builds", "_cuda builds", "_C loads", "_cuda loads", "check", "compile", "tests"]
YES, NO, OTHER_CUDA, NOTHING = "yes", "NO", "other CUDA", "-"

LOAD_CUDA = """
import sys
import torch, torchcalc
torch.ops.load_library(sys.argv[1])
assert torch._C._dispatch_has_kernel_for_dispatch_key("torchcalc::linear_act", "CUDA")
"""
COMPILE = """
import torch
from torchcalc import functional as F
x, w = torch.randn(9, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
call = lambda x, w: F.linear_act(x, w, activation="gelu", dropout_p=0.5, seed=3)
results = []
for f in (call, torch.compile(call, fullgraph=True)):
    y = f(x, w)
    results.append((y, *torch.autograd.grad(y.pow(2).sum(), (x, w))))
torch.testing.assert_close(*results)
"""


class StepError(Exception):
    """A step failed; the message is the end of what it printed."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise StepError("\n".join(done.stdout.strip().splitlines()[-20:]) or "it said nothing")
    return done.stdout


class Report:
    """A row for each pair of torch and binary."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, str]] = {}

    def note(self, row: tuple[str, str], column: str, result: str) -> None:
        self.rows.setdefault(row, {})[column] = result

    def step(
        self, row: tuple[str, str], column: str, action: Callable[..., Any], *args: Any
    ) -> Any:
        """The action's value, or None where it failed, which is noted."""
        name = f"torch {row[0]}, binary of {row[1]}: {column}"
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        try:
            value = action(*args)
        except (StepError, BuildError) as error:
            print(f"{name}: {NO}\n{error}", flush=True)
            self.note(row, column, NO)
            return None
        print(f"{name}: {YES} ({time.monotonic() - start:.0f} s)", flush=True)
        self.note(row, column, YES)
        return value

    def failed(self) -> bool:
        return not self.rows or any(NO in cells.values() for cells in self.rows.values())

    def table(self) -> str:
        head = ["torch", "binary of", *COLUMNS]
        lines = [
            [*row, *(cells.get(column, NOTHING) for column in COLUMNS)]
            for row, cells in self.rows.items()
        ]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        bars = ["-" * width for width in widths]
        return "\n".join(
            "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in [head, bars, *lines]
        )


def cuda_major(torch: Path) -> str | None:
    """Of the CUDA that the torch in this directory was built with."""
    cuda: str | None = runpy.run_path(str(torch / "version.py"))["cuda"]
    return cuda.split(".")[0] if cuda else None


def nvcc_major() -> str | None:
    """Of the nvcc that would compile, None without one."""
    with mock.patch.dict(os.environ, TORCHCALC_CUDA="1"):
        try:
            nvcc = build_support.find_nvcc(Torch(ROOT, None))
        except BuildError:
            return None
    release = nvcc and re.search(r"release (\d+)", run(nvcc, "--version"))
    return release[1] if release else None


def build(torch: Path, out: Path, cuda: bool) -> dict[str, Path]:
    """Compiles against the torch in this directory, which need not be one that can be imported."""
    found = Torch(torch, None)  # any nvcc may compile for it: whether that loads is seen later
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
    settings = {"TORCHCALC_CUDA": str(int(cuda)), "TORCH_CUDA_ARCH_LIST": archs}
    with (
        mock.patch.object(build_support, "find_torch", return_value=found),
        mock.patch.dict(os.environ, settings),
    ):
        return build_support.build_native(out, "0")


def install_package(place: Path, library: Path) -> None:
    """torchcalc with this _C in `place`, to be imported by a Python that starts there."""
    shutil.rmtree(place, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "torchcalc", place / "torchcalc", ignore=ignore)
    name = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
    shutil.copy(library, place / "torchcalc" / name)


def load(
    report: Report,
    row: tuple[str, str],
    python: Path,
    libraries: dict[str, Path],
    place: Path,
    same_cuda: bool,
    tests: bool,
) -> None:
    """Everything that is tried with one binary under one torch, whose interpreter `python` is."""
    install_package(place, libraries["_C"])

    def command(*words: str | Path) -> str:
        return run(python, *words, cwd=place)

    if report.step(row, "_C loads", command, "-c", "import torchcalc") is None:
        return
    if "_cuda" in libraries and same_cuda:
        report.step(row, "_cuda loads", command, "-c", LOAD_CUDA, libraries["_cuda"])
    elif "_cuda" in libraries:
        report.note(row, "_cuda loads", OTHER_CUDA)
    report.step(row, "check", command, "-m", "torchcalc", "check")
    report.step(row, "compile", command, "-c", COMPILE)
    if tests:
        shutil.copytree(ROOT / "tests", place / "tests")
        shutil.copy(ROOT / "pyproject.toml", place)
        files = [f"tests/test_{name}.py" for name in CORE_TESTS.split()]
        report.step(row, "tests", command, "-m", "pytest", "-q", "-n", "auto", *files)


def wheel_of(version: str, wheels: Path) -> Path:
    def found() -> list[Path]:
        tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
        return sorted(wheels.glob(f"torch-{version}[-+]*{tag}-*.whl"))

    if not found():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        run(*pip, "--dest", wheels, f"torch=={version}")
    if not found():
        raise StepError(f"pip brought no wheel of torch {version} for this Python")
    return found()[-1]


def try_version(
    report: Report,
    version: str,
    cache: Path,
    base: tuple[str, dict[str, Path]],
    options: argparse.Namespace,
) -> None:
    own, other = (version, version), (version, base[0])
    environment = cache / f"venv-{version}"
    python = environment / "bin/python"
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    nvcc = nvcc_major()
    try:
        print(f"torch {version}: fetching and unpacking", flush=True)
        wheel = wheel_of(version, cache / "wheels")
        run(sys.executable, "-m", "venv", environment)
        run(*pip, "--no-deps", wheel)
        torch = next(environment.glob("lib/python*/site-packages/torch"))

        out = cache / f"build-{version}"
        libraries = report.step(own, "_C builds", build, torch, out, False)
        if nvcc:
            libraries = report.step(own, "_cuda builds", build, torch, out, True) or libraries
        if options.compile_only:
            return
        print(f"torch {version}: installing what it needs", flush=True)
        run(*pip, wheel, "numpy", *(TEST_PACKAGES if options.tests else []))
        same_cuda = cuda_major(torch) == nvcc
        for row, binary in ((own, libraries), (other, base[1])):
            if binary:
                tests = options.tests and row == other
                load(report, row, python, binary, cache / f"package-{version}", same_cuda, tests)
    except StepError as error:
        print(f"torch {version}: {error}", flush=True)
        report.note(own, "_C builds", NO)
    finally:
        if not options.keep:
            shutil.rmtree(environment, ignore_errors=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torchcalc"
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"default: {VERSIONS}")
    parser.add_argument("--cache", type=Path, default=default, help=f"default: {default}")
    parser.add_argument("--compile-only", action="store_true", help="load nothing: saves 4 GB")
    parser.add_argument("--tests", action="store_true", help="run the core of the tests, too")
    parser.add_argument("--keep", action="store_true", help="leave the virtual environments there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cache = options.cache.resolve()
    (cache / "wheels").mkdir(parents=True, exist_ok=True)
    report = Report()
    torch = build_support.find_torch().path
    version = runpy.run_path(str(torch / "version.py"))["__version__"].partition("+")[0]
    print(f"building with the torch of this Python, {version}", flush=True)
    base = build(torch, cache / f"build-{version}", nvcc_major() is not None)
    for wanted in options.versions:
        try_version(report, wanted, cache, (version, base), options)
    print(report.table())
    return int(report.failed())


if __name__ == "__main__":
    sys.exit(main())
