"""Compiles the programs of this directory and asks them to run kernels."""

import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # build_support is part of the checkout, not of the package

from build_support import BuildError, NinjaFile, find_cxx, find_ninja, find_torch  # noqa: E402

OUT = ROOT / "build" / "cuda_host"
MEMORY, RACES = "-fsanitize=address,undefined -fno-sanitize-recover=all", "-fsanitize=thread"
PROGRAMS = {  # name -> source, sanitizers, defines
    "dropout": ("dropout", MEMORY, ""),
    "linear_act": ("linear_act", MEMORY, ""),
    "optim": ("optim", MEMORY, ""),
    "prox": ("prox", MEMORY, ""),
    "self_check": ("self_check", MEMORY, ""),
    "out_of_bounds": ("self_check", MEMORY, "-DPLANT_OUT_OF_BOUNDS=1"),
    "no_race": ("self_check", RACES, ""),
    "race": ("self_check", RACES, "-DCUDA_HOST_WITHOUT_SYNCTHREADS"),
}


def build():
    """Compiles what has changed since the last time."""
    cxx, ninja = shlex.join(find_cxx()), find_ninja()
    include = f"-Itests/cuda_host -Icsrc -isystem {shlex.quote(str(find_torch().path / 'include'))}"
    flags = f"-std=c++20 -O1 -g1 -pthread -Wall -Wextra -Wno-unknown-pragmas {include} $flags"
    file = NinjaFile(OUT)
    file.rule("cxx", f"{cxx} {flags} -MD -MF $out.d -c $in -o $out", depfile=True)
    file.rule("link", f"{cxx} -pthread $flags $in -o $out")

    def compiled(source, name, flags):
        return file.build(OUT / f"{name}.o", "cxx", [f"tests/cuda_host/{source}.cpp"], flags=flags)

    common = {
        flags: [compiled(source, f"{source}_{kind}", flags) for source in ("cuda_host", "request")]
        for kind, flags in (("memory", MEMORY), ("races", RACES))
    }
    for name, (source, sanitizers, defines) in PROGRAMS.items():
        main = compiled(source, name, f"{sanitizers} {defines}")
        file.build(OUT / name, "link", [main, *common[sanitizers]], flags=sanitizers)
    OUT.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    command = [ninja, "-f", OUT / "build.ninja", "-j", jobs]
    with (OUT / "lock").open("w") as lock:  # other test processes may want to build it, too
        fcntl.flock(lock, fcntl.LOCK_EX)
        (OUT / "build.ninja").write_text(file.text)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(
            "tests/cuda_host does not compile. It needs a compiler with AddressSanitizer, "
            f"UndefinedBehaviorSanitizer and ThreadSanitizer:\n{done.stdout}{done.stderr}"
        )


running = {}  # name -> process, the file of its standard error


def start(name):
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
    process = subprocess.Popen(
        [OUT / name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
    )
    return process, errors


def ask(name, directory=".", **values):
    """What the program answers: `done`, or what went wrong. It runs on until a request ends it."""
    if name not in running:
        running[name] = start(name)
    process, _ = running[name]
    words = [f"{key}={int(v) if isinstance(v, bool) else v}" for key, v in values.items()]
    process.stdin.write(" ".join([str(directory), *words]) + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip() or close(name)


def close(name):
    """Ends the program; returns what it has written to standard error."""
    process, errors = running.pop(name)
    process.communicate()
    with errors:
        errors.seek(0)
        return errors.read()


def close_all():
    for name in list(running):
        close(name)


def load(path, dtype):
    content = bytearray(Path(path).read_bytes())
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def run(program, inputs, outputs=None, changes=(), offset=0, **values):
    """The arrays after the call; of `inputs` (None: a null pointer) only `changes` may change."""
    inputs = {name: t for name, t in inputs.items() if t is not None}
    dtypes = {name: t.dtype for name, t in inputs.items()} | (outputs or {})
    with tempfile.TemporaryDirectory() as directory:
        for name, t in inputs.items():
            Path(directory, f"{name}.in").write_bytes(t.flatten().view(torch.uint8).numpy())
        answer = ask(program, directory, offset=offset, **values)
        assert answer == "done", answer
        result = {name: load(f"{directory}/{name}.out", dtype) for name, dtype in dtypes.items()}
    for name, t in inputs.items():
        result[name] = result[name].reshape(t.shape)
        if name not in changes:
            assert torch.equal(result[name].view(torch.uint8), t.view(torch.uint8)), name
    return result
