"""The parts of `make gpu` other than the tests: each returns what became of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tools.gpu.execute import Result, execute, outcome

SANITIZED = ["tests/test_gpu.py::test_every_kernel", "-k", "float32 or bfloat16"]
FAMILIES = ("dropout", "epilogue", "prox", "optim", "linear_act", "calls", "memory")
BENCHMARKS = [sys.executable, "-m", "benchmarks", *FAMILIES]
REPORT = 15.0  # seconds that the benchmarks need at their end, for pictures


def build(out: Path, library: str, cuda: str, limit: float) -> Result:
    log = out / f"build{library}.log"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    code = execute(command, log, limit, TORCHCALC_CUDA=cuda)
    archs = f" for {os.environ['TORCH_CUDA_ARCH_LIST']}" if cuda == "1" else ""
    return outcome(code, log, limit, f"torchcalc/{library}{archs}")


def sanitize(out: Path, sanitizer: str, tool: str, limit: float) -> Result:
    """Our kernels alone; without torch's cache each tensor is an allocation of its own."""
    log = out / f"{tool}.log"
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99"]
    if tool != "initcheck":  # it has to see who else writes, such as the GEMM
        command += ["--kernel-name", "kns=torchcalc"]
    command += [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    code = execute([*command, *SANITIZED], log, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    found = [line.strip("= ") for line in log.read_text().splitlines() if "SUMMARY" in line]
    result = outcome(code, log, limit, "")
    if found and code is not None:
        result.text = f"{found[-1]} {result.text}".strip()
    return result


def benchmarks(out: Path, limit: float) -> Result:
    log, folder = out / "benchmarks.log", out / "benchmarks"
    command = [*BENCHMARKS, "--device", "cuda", "--wait", "10", "--out", str(folder)]
    code = execute([*command, "--limit", str(max(limit - REPORT, 1.0))], log, limit)
    result = outcome(code, log, limit, "")
    for path in folder.glob("*.json"):
        rows = json.loads(path.read_text())["rows"]
        measured = sum(row["not_measured"] is None for row in rows)
        result.text = f"{measured} of {len(rows)} rows measured. {result.text}".rstrip()
        result.lines = main_rows(rows)
        result.data = {"file": str(path.relative_to(out))}
    return result


def dry_benchmarks(out: Path, limit: float) -> Result:
    log = out / "benchmarks.log"
    code = execute([*BENCHMARKS, "--dry"], log, limit)
    return outcome(code, log, limit, "the GPU's lines ran on the CPU; nothing was measured")


def main_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Those with a copy or a GEMM: what share of its rate, and how much faster than PyTorch."""
    lines = [f"  {'':58}{'share of copy, GEMM':>22}{'x eager':>9}{'x compile':>10}"]
    for row in rows:
        if row["not_measured"] or not row["roof"] or "one thread" in row["sizes"]:
            continue
        contenders, roof = row["contenders"], row["roof"]
        ours = contenders["torchcalc"]
        name = f"{row['family']} {row['name']} {row['dtype']} {row['sizes']}"
        share = f"{ours['share']:.0%} of {roof['rate']:.0f} {roof['unit']}"
        eager, compiled = (
            f"{contenders[other]['ratio'] / ours['ratio']:.2f}" if other in contenders else ""
            for other in ("eager", "torch.compile")
        )
        lines.append(f"  {name[:57]:58}{share:>22}{eager:>9}{compiled:>10}")
    return lines
