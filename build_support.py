"""Finds the compilers, writes build.ninja and runs it: what setup.py knows of C++ and CUDA.

ninja, not setuptools, compiles: a rebuild after one edit takes seconds, and it can drive nvcc
where torch is a CPU build (torch's own CUDAExtension refuses there). Both libraries use torch's
stable ABI only, so that one binary serves every torch >= 2.10.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
# Machine code for data centres' GPUs and, with 12.0, GeForce's. 8.0+PTX runs on all others, too.
DEFAULT_ARCHS = "8.0+PTX;9.0a;10.0;12.0"

# Hides everything of torch's C++ API that may change after 2.10.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
# The -fno- flags let loops with math in them vectorise and, unlike -ffast-math, keep NaN and Inf;
# -fopenmp-simd does so for sums, where a pragma asks for it. (No OpenMP comes with it.)
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-Wall", "-Wextra"]
# --threads is fixed: were it derived from MAX_JOBS, a change of MAX_JOBS would rebuild everything.
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2"]
NVCC_FLAGS += ["--expt-relaxed-constexpr", "--extended-lambda"]
# On macOS the linker must be told that the interpreter brings Python's symbols.
SHARED = ["-shared", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


class BuildError(Exception):
    """Something the build needs is missing; the message says what, in one line."""


class Torch(NamedTuple):
    path: Path
    cuda: str | None  # the CUDA version it was built with


def cpu_sources() -> list[str]:
    return ["csrc/library.cpp", *_glob("csrc/cpu/*.cpp")]


def cuda_sources() -> list[str]:
    return _glob("csrc/cuda/*.cu")


def _glob(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def find_torch() -> Torch:
    """Reads torch's version without importing torch, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not installed for this Python; torchcalc needs torch >= 2.10")
    path = Path(spec.origin).parent
    info = runpy.run_path(str(path / "version.py"))
    version = str(info["__version__"])
    if tuple(map(int, version.split(".")[:2])) < (2, 10):
        raise BuildError(f"torch {version} is too old; torchcalc needs torch >= 2.10")
    return Torch(path, info.get("cuda"))


def find_pybind11() -> str:
    try:
        import pybind11
    except ImportError:
        raise BuildError(
            "pybind11 is not installed for this Python (pip install pybind11)"
        ) from None
    return pybind11.get_include()


def find_ninja() -> str:
    try:
        import ninja  # the PyPI package: not on PATH when the virtual environment is not activated
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = os.path.join(ninja.BIN_DIR, "ninja")
    if found is None:
        raise BuildError("ninja is not installed (pip install ninja)")
    return found


def find_cxx() -> list[str]:
    """The C++ compiler as a command (`CXX="ccache g++"` is two words), checked to know C++20."""
    wanted = os.environ.get("CXX")
    cxx = shlex.split(wanted) if wanted else [c for c in ("g++", "clang++") if shutil.which(c)][:1]
    if not cxx or not shutil.which(cxx[0]):
        hint = (
            f"CXX={wanted} is not an executable" if wanted else "install g++ >= 11 or clang++ >= 14"
        )
        raise BuildError(f"no C++ compiler: {hint}")
    macros = run_tool([*cxx, "-dM", "-E", "-x", "c++", os.devnull])
    name = shlex.join(cxx)
    # Clang defines __GNUC__, too.
    for macro, family, oldest in (("__clang_major__", "Clang", 14), ("__GNUC__", "GCC", 11)):
        if match := re.search(rf"^#define {macro} (\d+)", macros, re.MULTILINE):
            if int(match[1]) < oldest:
                raise BuildError(f"{name} is {family} {match[1]}; C++20 needs {family} >= {oldest}")
            return cxx
    raise BuildError(f"{name} is neither GCC nor Clang; set CXX to g++ >= 11 or clang++ >= 14")


def find_nvcc(torch: Torch) -> str | None:
    """nvcc where the CUDA kernels are to be built, else None."""
    wanted = os.environ.get("TORCHCALC_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise BuildError(f"TORCHCALC_CUDA={wanted} means nothing; use 1, use 0, or leave it unset")
    if wanted == "0" or (not wanted and not torch.cuda):
        return None
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, places)), None)
    if nvcc is None:
        if wanted:
            missing = " and no ".join(places)
            raise BuildError(f"TORCHCALC_CUDA=1, but there is no {missing}; set CUDA_HOME")
        return None
    version = cuda_release(nvcc)
    major = version.split(".")[0]
    if int(major) < 12:
        raise BuildError(f"{nvcc} is CUDA {version}; C++20 needs CUDA >= 12.0 (set CUDA_HOME)")
    if torch.cuda and torch.cuda.split(".")[0] != major:
        raise BuildError(
            f"{nvcc} is CUDA {version}, but torch was built with CUDA {torch.cuda}; "
            "set CUDA_HOME to a toolkit of that major version, or TORCHCALC_CUDA=0 for the CPU only"
        )
    return nvcc


def run_tool(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise BuildError(f"`{shlex.join(command)}` failed") from None


def cuda_release(nvcc: str) -> str:
    release = re.search(r"release (\d+\.\d+)", run_tool([nvcc, "--version"]))
    if release is None:
        raise BuildError(f"`{nvcc} --version` names no CUDA release")
    return release[1]


def default_archs(nvcc: str) -> str:
    """DEFAULT_ARCHS, of them those that this nvcc knows."""
    known = run_tool([nvcc, "--list-gpu-code"]).split()
    names = DEFAULT_ARCHS.split(";")
    return ";".join(a for a in names if "sm_" + re.sub(r"\D", "", a) in known)


def gencode_flags(archs: str) -> list[str]:
    """nvcc's flags for a list such as "8.0+PTX;9.0a".

    An entry gives machine code for that GPU; +PTX adds code that the drivers of later ones compile.
    """
    flags: dict[str, None] = {}  # an ordered set
    for arch in re.split(r"[;,\s]+", archs.strip("; ,")):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST holds {arch!r}; write 8.0, 9.0a or 8.0+PTX")
        name = match[1] + match[2]
        flags[f"-gencode=arch=compute_{name},code=sm_{name}"] = None
        if match[3]:
            flags[f"-gencode=arch=compute_{name},code=compute_{name}"] = None
    return list(flags)


class NinjaFile:
    """The text of a build.ninja, and where it puts things."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.text = f"ninja_required_version = 1.5\nbuilddir = {_path(out)}\n"

    def rule(self, name: str, command: str, depfile: bool = False) -> None:
        """`command` may use $in, $out, $flags, and with `depfile` lists its headers in $out.d."""
        self.text += f"\nrule {name}\n  command = {command}\n  description = {name} $out\n"
        self.text += "  depfile = $out.d\n" if depfile else ""

    def build(
        self, out: Path, rule: str, inputs: Iterable[str | Path], needs: str = "", flags: str = ""
    ) -> Path:
        """`needs` is an input that stays out of $in."""
        words = [f"build {_path(out)}: {rule}", *map(_path, inputs)]
        words += ["|", _path(needs)] if needs else []
        self.text += " ".join(words) + "\n" + (f"  flags = {flags}\n" if flags else "")
        return out

    def objects(self, rule: str, sources: Iterable[str]) -> list[Path]:
        return [self.build(self.out / f"{source}.o", rule, [source]) for source in sources]


def _path(path: str | Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _words(words: Iterable[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def build_native(out: Path, version: str) -> dict[str, Path]:
    """Builds in `out` and returns the libraries: "_C" and, where it is wanted, "_cuda"."""
    if sys.platform == "win32":
        raise BuildError("Windows is not supported")
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not re.fullmatch(r"[1-9]\d*", jobs):
        raise BuildError(f"MAX_JOBS={jobs} is not a positive number")
    torch, pybind11, ninja, cxx = find_torch(), find_pybind11(), find_ninja(), find_cxx()
    nvcc = find_nvcc(torch) if cuda_sources() else None
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or (
        default_archs(nvcc) if nvcc else ""
    )

    file = NinjaFile(out)
    defines = [
        f'-DTORCHCALC_VERSION="{version}"',
        f'-DTORCHCALC_CUDA="{cuda_release(nvcc) if nvcc else ""}"',
        f'-DTORCHCALC_CUDA_ARCHS="{archs if nvcc else ""}"',
    ]
    variant = "with_cuda" if nvcc else "cpu_only"
    libraries = {"_C": add_cpu(file, torch, cxx, pybind11, variant, defines)}
    if nvcc:
        libraries["_cuda"] = add_cuda(file, torch, cxx, nvcc, archs)
    out.mkdir(parents=True, exist_ok=True)
    (out / "build.ninja").write_text(file.text)

    if subprocess.run([ninja, "-f", out / "build.ninja", "-j", jobs], cwd=ROOT).returncode:
        raise BuildError("compiling failed; the compiler's message is above")
    return libraries


def add_cpu(
    file: NinjaFile, torch: Torch, cxx: list[str], pybind11: str, variant: str, defines: list[str]
) -> Path:
    # pybind11 before torch, whose include directory holds a copy of another version.
    system = [pybind11, sysconfig.get_paths()["include"], str(torch.path / "include")]
    includes = ["-Icsrc", *(word for path in system for word in ("-isystem", path))]
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    link = [f"-L{torch.path / 'lib'}", "-ltorch_cpu", *shlex.split(os.environ.get("LDFLAGS", ""))]
    compile_command = _words([*cxx, *CXX_FLAGS, *STABLE_ABI, *includes, *extra])
    file.rule("cxx", f"{compile_command} $flags -MD -MF $out.d -c $in -o $out", depfile=True)
    file.rule("link", f"{_words([*cxx, *SHARED])} $in -o $out {_words(link)}")

    library, *rest = cpu_sources()
    objects = file.objects("cxx", rest)
    # Only library.cpp sees what varies, so a new version compiles one file; and each variant has an
    # object of its own, so turning CUDA on and off compiles none.
    place = file.out / variant
    objects.append(file.build(place / "library.o", "cxx", [library], flags=_words(defines)))
    return file.build(place / "_C.so", "link", objects)


def add_cuda(file: NinjaFile, torch: Torch, cxx: list[str], nvcc: str, archs: str) -> Path:
    # nvcc takes one program as its host compiler, so ccache is left out.
    host = next(word for word in cxx if Path(word).name not in ("ccache", "sccache"))
    compiler = [nvcc, "-ccbin", host, *NVCC_FLAGS, *gencode_flags(archs), *STABLE_ABI, "-DUSE_CUDA"]
    compiler += ["-Icsrc", "-isystem", str(torch.path / "include")]
    file.rule("nvcc", f"{_words(compiler)} -MD -MF $out.d -c $in -o $out", depfile=True)
    objects = file.objects("nvcc", cuda_sources())

    # A CPU build of torch has no libtorch_cuda.so. An empty library of that name to link against
    # makes _cuda.so ask for the real one at load time: a build from here runs where torch has CUDA.
    directory, stub = torch.path / "lib", ""
    if not (directory / "libtorch_cuda.so").exists():
        directory = file.out / "stub"
        stub = str(directory / "libtorch_cuda.so")
        soname = "-Wl,-soname,libtorch_cuda.so"
        file.rule("stub", f"{_words(cxx)} -shared {soname} -x c++ {os.devnull} -o $out")
        file.build(Path(stub), "stub", [])
    # Without --no-as-needed the linker drops the stub, which defines nothing. The CUDA runtime is
    # the shared one: torch has loaded it already, and a second copy would be a second set of state.
    link = [nvcc, "-ccbin", host, "-shared", "--cudart", "shared", "-Xlinker", "--no-as-needed"]
    libs = [f"-L{torch.path / 'lib'}", f"-L{directory}", "-ltorch_cpu", "-ltorch_cuda"]
    file.rule("link_cuda", f"{_words(link)} $in -o $out {_words(dict.fromkeys(libs))}")
    return file.build(file.out / "_cuda.so", "link_cuda", objects, needs=stub)
