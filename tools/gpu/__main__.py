"""`make gpu`: builds, tests and measures on a GPU machine, with the torch that is there.

Needs no network and nothing but torch, numpy, pybind11, ninja, setuptools, pytest, a C++ compiler
and nvcc: what is missing is said first, all of it. Every part has a time limit and goes on where
one before it failed; together they end within --limit seconds. Results, logs and pictures go to a
new folder. Without a GPU, what needs none runs.

Exit status: 0: every part went well; 1: one did not; 2: something needed is missing, nothing ran;
3: there is no GPU, and what needs none went well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from build_support import DEFAULT_ARCHS
from tools.gpu import needs, parts, tests
from tools.gpu.execute import FAILED, NOT_RUN, OK, ROOT, Result, last_line

LIMIT = 580.0  # ten minutes, with what a part may take to end


@dataclass
class Part:
    name: str
    share: float  # seconds that it has at least; what earlier ones leave is added
    run: Callable[[float], Result]
    missing: str | None = None  # why it cannot run
    needs: str | None = None  # the part that has to have gone well


Results = list[tuple[Part, float, Result]]  # with the seconds that they took

PROBE = """
import json, torch
from torch.utils import collect_env
facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "archs": []}
if torch.version.cuda is None:
    facts["why"] = "this torch is built without CUDA"
else:
    facts["driver"] = collect_env.get_nvidia_driver_version(collect_env.run)
    try:
        torch.cuda.init()
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            facts["gpus"].append(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
            facts["archs"].append(f"{gpu.major}.{gpu.minor}")
    except Exception as error:
        facts["why"] = str(error).splitlines()[0]
print("\\n" + json.dumps(facts))
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    start = time.monotonic()
    out = args.out or ROOT / "runs" / "gpu" / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    if out.exists() and not out.is_dir():
        parser.error(f"--out: {out} is no folder")
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out: {out} is not empty: what is there could be taken for this run's")
    facts = probe()
    gpu = bool(facts["gpus"])
    missing = needs.required(gpu)
    print(needs.message(missing, needs.optional(gpu)), flush=True)
    if missing:
        return 2
    if not gpu:
        print(f"No GPU ({facts['why']}): only what needs none runs.", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    for library in (ROOT / "torchcalc").glob("*.so"):
        library.unlink()  # so that none of an earlier build can be tested
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", archs(facts))
    facts["commit"] = commit()
    wanted = all_parts(out.resolve(), facts)
    for part in wanted:
        part.share *= args.limit / LIMIT
    results = run_parts(wanted, start + args.limit)
    write_summary(out, facts, results, time.monotonic() - start)
    if any(result.status == FAILED for _, _, result in results):
        return 1
    return 0 if gpu else 3


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder; default: runs/gpu/<date>-<time>"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT, metavar="S", help="seconds (default: %(default)g)"
    )
    return parser


def probe() -> dict[str, Any]:
    """What torch says of itself and the GPUs, asked in another process, which may hang or die."""
    facts: dict[str, Any] = {
        "torch": "?",
        "cuda": None,
        "driver": None,
        "gpus": [],
        "archs": [],
        "why": "",
    }
    command = [sys.executable, "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.TimeoutExpired:
        return facts | {"why": "torch did not answer within 60 s"}
    except subprocess.CalledProcessError as error:
        return facts | {"why": last_line(error.stderr)}
    facts.update(json.loads(last_line(done.stdout)))
    return facts


def archs(facts: dict[str, Any]) -> str:
    """Those of the default that the GPUs here run; without a GPU one, to save time."""
    default = [arch.removesuffix("+PTX") for arch in DEFAULT_ARCHS.split(";")]
    if not facts["gpus"]:
        return default[0]
    here = set(facts["archs"])
    own = [arch for arch in default if arch.rstrip("af") in here]
    return ";".join(own) if len(own) == len(here) else DEFAULT_ARCHS


def all_parts(out: Path, facts: dict[str, Any]) -> list[Part]:
    no_gpu = None if facts["gpus"] else "no GPU"
    sanitizer = needs.compute_sanitizer()
    no_sanitizer = no_gpu or (None if sanitizer else "there is no compute-sanitizer")
    no_nvcc = next((missing.why.partition(": ")[2] for missing in needs.missing_nvcc()), None)
    cpu, cuda = "build for the CPU", "build for CUDA"
    if no_gpu:
        bench = Part("benchmarks, dry", 60, partial(parts.dry_benchmarks, out), needs=cpu)
    else:
        bench = Part("benchmarks", 90, partial(parts.benchmarks, out), needs=cuda)
    return [
        Part(cpu, 120, partial(parts.build, out, "_C", "0")),
        Part(cuda, 150, partial(parts.build, out, "_cuda", "1"), no_nvcc, cpu),
        Part("tests on the GPU", 100, partial(tests.run, out, "cuda"), no_gpu, cuda),
        bench,
        *(
            Part(tool, 15, partial(parts.sanitize, out, str(sanitizer), tool), no_sanitizer, cuda)
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
        Part("tests on the CPU", 75, partial(tests.run, out, "not cuda"), needs=cpu),
    ]


def run_parts(wanted: list[Part], end: float) -> Results:
    """Each part in turn; the later ones keep their shares of the time until ``end``."""
    results: Results = []
    went_well: set[str | None] = {None}
    for k, part in enumerate(wanted):
        start = time.monotonic()
        reserved = sum(later.share for later in wanted[k + 1 :] if later.missing is None)
        if part.missing:
            result = Result(NOT_RUN, part.missing)
        elif part.needs not in went_well:
            result = Result(NOT_RUN, f"{part.needs} did not go well")
        else:
            print(f"{part.name} ...", flush=True)
            try:
                result = part.run(max(end - start - reserved, 1.0))
            except Exception as error:  # must not keep the others from running
                result = Result(FAILED, f"{type(error).__name__}: {error}")
        if result.status == OK:
            went_well.add(part.name)
        results.append((part, time.monotonic() - start, result))
        print(f"{part.name}: {result.status}. {result.text}", flush=True)
    return results


def write_summary(out: Path, facts: dict[str, Any], results: Results, seconds: float) -> None:
    driver = f", CUDA {facts['cuda']}, driver {facts['driver']}" if facts["cuda"] else ""
    lines = ["", f"torchcalc {facts['commit'] or '(no commit)'}, torch {facts['torch']}{driver}"]
    lines += ["; ".join(facts["gpus"]) or f"No GPU: {facts['why']}.", ""]
    for part, took, result in results:
        lines.append(f"{part.name:<18}{result.status:<8}{took:5.0f} s  {result.text}".rstrip())
        lines += result.lines
    lines += ["", f"{seconds:.0f} s; results and logs are in {out}"]
    text = "\n".join(lines) + "\n"
    print(text, end="", flush=True)
    (out / "summary.txt").write_text(text)
    entries = [
        {"name": part.name, "seconds": round(took, 1), **asdict(result)}
        for part, took, result in results
    ]
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    summary = {"date": date, **facts, "seconds": round(seconds, 1), "parts": entries}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def commit() -> str | None:
    """Of the checkout, with a + where files differ from it; None outside of one."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
