"""What `make gpu` needs, what each is for, and what of it is missing here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import build_support
from build_support import BuildError, Torch

REQUIRED = {  # package -> the oldest version that does, and what it is for
    "torch": ((2, 10), "to build against, and to run"),
    "numpy": (
        (1, 26),
        "an oracle in the tests; torch warns without it, which is an error in tests",
    ),
    "pybind11": ((2, 13), "the Python part of torchcalc/_C"),
    "setuptools": ((65, 0), "setup.py"),
    "pytest": ((8, 0), "the tests"),
}
OPTIONAL = {  # package -> what is lost without it
    "pytest-timeout": "a test that hangs ends its process, not only itself",
    "hypothesis": "the tests with values that nobody thought of are skipped",
    "scikit-learn": "the tests of the demo and of the optimizers' solutions are skipped",
    "matplotlib": "no pictures of the benchmarks; the tests of them and of the demo are skipped",
    "rich": "plain tables; the tests of the demo are skipped",
}
FOR_GPU = {"triton": "torch.compile fails on the GPU: in its tests, and beside the benchmarks"}
MODULES = {"scikit-learn": "sklearn"}


class Missing(NamedTuple):
    name: str
    why: str  # what it is for, or what is lost


def required(gpu: bool) -> list[Missing]:
    """What has to be there, and is not. With ``gpu``, nvcc too."""
    found = [
        Missing(f"{name} >= {'.'.join(map(str, oldest))}", why + has_instead(name))
        for name, (oldest, why) in REQUIRED.items()
        if not is_installed(name) or version(name) < oldest
    ]
    found += not_found("ninja", build_support.find_ninja, "compiles, by build.ninja")
    found += not_found("C++20 compiler", build_support.find_cxx, "compiles the CPU kernels")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        found.append(Missing("Python.h", "of this Python, for torchcalc/_C: its -dev package"))
    return found + (missing_nvcc() if gpu else [])


def missing_nvcc() -> list[Missing]:
    def find() -> object:
        torch = build_support.find_torch() if is_installed("torch") else Torch(Path(), None)
        return build_support.find_nvcc(torch)

    with patch.dict(os.environ, TORCHCALC_CUDA="1"):  # else that there is none is no error
        return not_found("nvcc", find, "compiles the CUDA kernels")


def optional(gpu: bool) -> list[Missing]:
    wanted = {**OPTIONAL, **(FOR_GPU if gpu else {})}
    found = [Missing(name, lost) for name, lost in wanted.items() if not is_installed(name)]
    if gpu and compute_sanitizer() is None:
        found.append(Missing("compute-sanitizer", "no memcheck, racecheck and initcheck"))
    return found + ([] if gpu else missing_nvcc())


def message(needed: list[Missing], lost: list[Missing]) -> str:
    lines = []
    for title, missing in (("Missing:", needed), ("Not here, and not needed:", lost)):
        lines += [title] * bool(missing) + [f"  {name:<18} {why}" for name, why in missing]
    return "\n".join(lines) or "All that is needed is here."


def is_installed(name: str) -> bool:
    module = MODULES.get(name, name.replace("-", "_"))
    return importlib.util.find_spec(module) is not None


def version(name: str) -> tuple[int, ...]:
    try:
        text = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return (1 << 30,)  # built from source, perhaps: let it try
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def has_instead(name: str) -> str:
    return f" (here: {importlib.metadata.version(name)})" if is_installed(name) else ""


def not_found(name: str, find: Callable[[], object], why: str) -> list[Missing]:
    try:
        find()
    except BuildError as error:
        return [Missing(name, f"{why}: {error}")]
    return []


def compute_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = ("compute-sanitizer", f"{home}/bin/compute-sanitizer")
    return next(filter(None, map(shutil.which, places)), None)
