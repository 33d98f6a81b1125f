"""Compiles the .cu files as C++ for the CPU: one library that registers them for CPU tensors."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # build_support is part of the checkout, not of the package

from build_support import (  # noqa: E402
    STABLE_ABI,
    BuildError,
    NinjaFile,
    cuda_sources,
    find_cxx,
    find_ninja,
    find_torch,
)

OUT = ROOT / "build" / "cuda_host"
HERE = "tests/cuda_host"
FAMILIES = tuple(Path(source).stem for source in cuda_sources())
# What is looked for, with which flags, and the library that must be in the process first.
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined -fno-sanitize-recover=all", "libasan.so"),
    "races": ("-fsanitize=thread", "libtsan.so"),
    "none": ("", None),
}

Changes = Mapping[str, tuple[str, str]]  # file below csrc -> what stands there, and what instead


def library(
    sanitizer: str,
    name: str = "all",
    families: tuple[str, ...] = FAMILIES,
    changes: Changes | None = None,
) -> Path:
    """Builds what has changed; with ``changes`` from sources that have these faults."""
    torch, cxx, ninja = find_torch(), shlex.join(find_cxx()), find_ninja()
    out = OUT / sanitizer / name
    faulty = out / "csrc"  # searched before the true sources
    flags = SANITIZERS[sanitizer][0]
    includes = f"-I{HERE} -I{shlex.quote(str(faulty))} -Icsrc"
    system = f"-isystem {shlex.quote(str(torch.path / 'include'))}"
    # native: with FMA, which nvcc makes of a product and a sum, too.
    compiler = f"{cxx} -std=c++20 -O1 -g1 -march=native -fPIC -fvisibility=hidden -Wall -Wextra"
    compiler += f" -Wno-unknown-pragmas {shlex.join(STABLE_ABI)} -DUSE_CUDA"

    file = NinjaFile(out)
    command = f"{compiler} {includes} {system} $flags -MD -MF $out.d -c $in -o $out"
    file.rule("cxx", command, depfile=True)
    link = f"-L{shlex.quote(str(torch.path / 'lib'))} -ltorch_cpu -ldl -Wl,-Bsymbolic"
    file.rule("link", f"{cxx} -shared {flags} $in -o $out {link}")
    races = " -DCUDA_HOST_RACES" * (sanitizer == "races")
    objects = [
        file.build(out / f"{source}.o", "cxx", [f"{HERE}/{source}.cpp"], flags=races)
        for source in ("launch", "torch_cuda")
    ]
    for family in families:
        source = f"-DSOURCE='\"cuda/{family}.cu\"' {flags}"
        objects.append(file.build(out / f"{family}.o", "cxx", [f"{HERE}/family.cpp"], flags=source))
    result = file.build(out / "cuda_host.so", "link", objects)

    out.mkdir(parents=True, exist_ok=True)
    for stale in set(faulty.rglob("*.*")) - {faulty / path for path in changes or ()}:
        stale.unlink()
    for path, (before, after) in (changes or {}).items():
        text = (ROOT / "csrc" / path).read_text()
        if before not in text:
            raise BuildError(f"csrc/{path} does not hold {before!r}, which is to be changed")
        _write(faulty / path, text.replace(before, after))
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    with (out / "lock").open("w") as lock:  # other processes may want to build it, too
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(out / "build.ninja", file.text)
        command = [ninja, "-f", out / "build.ninja", "-j", jobs]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{HERE} does not compile:\n{done.stdout}{done.stderr}")
    return result


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def environment(sanitizer: str, built: Path) -> dict[str, str]:
    """Of a Python in which the plugin loads the library."""
    env = os.environ | {
        "TORCHCALC_CUDA_HOST": str(built),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        # Python and torch leave memory behind; torch is not compiled for ThreadSanitizer.
        "ASAN_OPTIONS": "detect_leaks=0 allocator_may_return_null=1",
        "TSAN_OPTIONS": "halt_on_error=1 ignore_noninstrumented_modules=1 "
        "allocator_may_return_null=1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # it would warn that kernels are replaced
    }
    runtime = SANITIZERS[sanitizer][1]
    if runtime:
        # libstdc++ as well: the sanitizers look for its throw when the program starts.
        env["LD_PRELOAD"] = " ".join(map(_library_of_compiler, (runtime, "libstdc++.so")))
    return env


def _library_of_compiler(name: str) -> str:
    command = [*find_cxx(), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
