"""Runs the tests through the CUDA code, on the CPU: python tests/cuda_host [pytest's arguments]."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cuda_host import build


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python tests/cuda_host",
        description="Compiles the .cu files as C++, registers them for CPU tensors in place of the "
        "CPU's kernels, and runs the tests. Other arguments are pytest's.",
    )
    parser.add_argument(
        "--sanitize",
        choices=build.SANITIZERS,
        default="memory",
        help="memory: out of bounds, undefined behaviour; races: between CUDA threads",
    )
    args, rest = parser.parse_known_args()
    try:
        library = build.library(args.sanitize)
    except build.BuildError as error:
        raise SystemExit(str(error)) from None
    command = [sys.executable, "-m", "pytest", "-p", "cuda_host.plugin", *rest]
    os.chdir(build.ROOT)
    os.execve(sys.executable, command, build.environment(args.sanitize, library))


if __name__ == "__main__":
    main()
