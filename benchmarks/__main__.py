"""python -m benchmarks: measure, print tables, write JSON and a plot."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.clocks import DryGpu, Gpu
from benchmarks.harness import Config
from benchmarks.quiet import Watch
from benchmarks.runner import FAMILIES, run

RESULTS = Path(__file__).resolve().parent / "results"
REPEATS = {"cpu": 21, "cuda": 101}
QUICK_REPEATS = 3
WAIT = 300.0


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    if args.out:
        try:
            args.out.mkdir(parents=True, exist_ok=True)  # before measuring, not after
        except OSError as error:
            parser.error(f"--out: {error}")
    if args.device == "cuda" and not args.dry and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU (--dry does without)")
    gpu = DryGpu() if args.dry else Gpu() if args.device == "cuda" else None
    quick = args.quick or args.dry
    config = Config(
        torch.device("cpu") if gpu is None else gpu.device,
        args.repeats or (QUICK_REPEATS if quick else REPEATS[args.device]),
        quick,
        args.compile,
        None if quick else Watch(args.wait),  # tests are quick, and run beside others
        gpu,
        args.limit,
    )
    if args.dry:
        print("A dry run on the CPU: times mean nothing.")
    results = run(config, args.family or list(FAMILIES))
    report.print_tables(results)
    if config.watch and config.watch.left < args.wait:
        print(f"{args.wait - config.watch.left:.0f} s were lost to other processes.")

    whole = args.compile and not args.family and not quick and args.limit == math.inf
    out = args.out or (RESULTS if whole else None)
    if out is None:
        print("Not written: name a folder with --out to keep a partial or quick run.")
    else:
        write(out, config, results)
    failed = [row.name for rows in results.values() for row in rows if row.failed]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


def write(out: Path, config: Config, results: report.Results) -> None:
    """JSON and, where matplotlib is installed, plots."""
    out.mkdir(parents=True, exist_ok=True)
    here = machine.describe(config.gpu)
    path = out / f"{machine.slug(here)}.json"
    path.write_text(report.to_json(here, results))
    print(f"Written: {path}")
    if importlib.util.find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed.")
        return
    from benchmarks.plot import plot

    for picture in plot(path.with_suffix(".png"), here, results):
        print(f"Written: {picture}")


ABOUT = """\
Measures torchcalc beside eager PyTorch, torch.compile and the bare copy or GEMM: prints a table per
family and writes JSON and plots. Without the name of a family it measures all of them.
"""
QUIET = """\
Rounds in which other processes use the cores do not count (on Linux, which tells): they are
measured again when it is quiet. A row that got too few, or whose baseline is unsteady, is
"not measured", and its bound neither met nor missed.
"""


def argument_parser() -> argparse.ArgumentParser:
    width = max(map(len, FAMILIES))
    families = [
        f"  {name:{width}}  {(module.__doc__ or '').splitlines()[0]}"
        for name, module in FAMILIES.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=ABOUT,
        epilog="\n".join(["families:", *families, "", QUIET]),
    )
    parser.add_argument(
        "family",
        nargs="*",
        choices=[[], *FAMILIES],  # argparse checks the empty list, too
        metavar="family",
        help="measure only these",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, few repeats, whatever else runs: tries the benchmarks themselves, "
        "times mean nothing",
    )
    parser.add_argument(
        "--wait",
        type=seconds,
        default=WAIT,
        metavar="S",
        help="seconds that other processes may cost, all rows together (default: %(default)g)",
    )
    parser.add_argument(
        "--limit",
        type=seconds,
        default=math.inf,
        metavar="S",
        help="seconds for all rows together; what takes longer is not measured",
    )
    parser.add_argument("--repeats", type=positive, metavar="N", help="rounds for each row")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda: GPU time between events, the L2 cache flushed, beside "
        "torch.compile(mode='max-autotune-no-cudagraphs'); default: cuda where there is a GPU",
    )
    parser.add_argument(
        "--dry",
        action="store_true",
        help="what --device cuda does, but on the CPU and quick: tries it where there is no GPU",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the results go; benchmarks/results for a complete run",
    )
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="leave torch.compile out"
    )
    return parser


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def seconds(text: str) -> float:
    if not 0 <= float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return float(text)


if __name__ == "__main__":
    main()
