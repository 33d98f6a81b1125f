"""The parser of the command line, and which module runs each command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchcalc import __version__
from torchcalc.cli import arguments
from torchcalc.cli.demo.settings import Settings

_EXTRAS = ("sklearn", "matplotlib", "rich")

_DEMO = """\
Trains the same MLP (64-256-256-10, gelu, dropout 0.1) on scikit-learn's handwritten digits twice,
from the same initial weights, on the same batches, with the same learning rate and steps:

  dense   nn.Linear, nn.GELU, nn.Dropout, torch.optim.AdamW
  sparse  torchcalc.nn.LinearAct, torchcalc.optim.AdamW with an L1 penalty on the weights

Prints a table of both and writes report.json, sparse.pt (the sparse model's state_dict, of the
first seed), training.png and weights.png. Nothing is downloaded."""

_DEMO_FIGURES = """\
figures (means over the seeds):
  exactly zero weights  share of the weight matrices' elements that are 0.0; biases do not count
  time per step         median over all steps of forward + backward + optimizer; evaluation and
                        fetching the batch are not in it
  saved for backward    bytes that autograd keeps from forward to backward in one step: every saved
                        tensor's storage once, the loss's included, parameters not"""

_CHECK = """\
Differentiates every op of torchcalc numerically and compares, in float64: first derivatives in
reverse (gradcheck) and forward mode (forward AD), second derivatives in reverse over reverse and
forward over reverse (gradgradcheck). Exits with 1 if anything fails."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchcalc",
        description="torchcalc: the calculus of training as fused, differentiable PyTorch kernels.",
    )
    parser.add_argument("--version", action="version", version=f"torchcalc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, summary: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    demo = add("demo", "train a dense and a sparse model and compare them", _DEMO, _DEMO_FIGURES)
    _add_demo_options(demo)
    add("info", "print versions, build, SIMD level and devices", "What this torchcalc is made of.")
    check = add("check", "check the derivatives of every op on this machine", _CHECK)
    _add_check_options(check)
    return parser


def _add_demo_options(demo: argparse.ArgumentParser) -> None:
    default = Settings()

    def option(name: str, **options: object) -> None:
        demo.add_argument(name, **options)  # type: ignore[arg-type]

    option(
        "--out",
        type=Path,
        default=default.out,
        metavar="DIR",
        help="folder for the results, made if missing (default: %(default)s)",
    )
    option(
        "--seeds",
        type=arguments.seed,
        nargs="+",
        default=list(default.seeds),
        metavar="SEED",
        help="seeds of initial weights, batches and dropout; each trains both models "
        f"(default: {' '.join(map(str, default.seeds))})",
    )
    option(
        "--steps",
        type=arguments.count,
        default=default.steps,
        metavar="N",
        help="training steps of each model (default: %(default)s)",
    )
    option(
        "--batch-size",
        type=arguments.count,
        default=default.batch_size,
        metavar="N",
        help="digits in a step (default: %(default)s)",
    )
    option(
        "--lr",
        type=arguments.rate,
        default=default.lr,
        metavar="LR",
        help="learning rate of both models (default: %(default)s)",
    )
    option(
        "--lam",
        type=arguments.strength,
        default=default.lam,
        metavar="LAM",
        help="strength of the sparse model's L1 penalty (default: %(default)s)",
    )
    option(
        "--device",
        type=arguments.device,
        default=default.device,
        metavar="DEVICE",
        help="cpu, cuda or cuda:N (default: %(default)s)",
    )


def _add_check_options(check: argparse.ArgumentParser) -> None:
    check.add_argument(
        "--device",
        type=arguments.device,
        metavar="DEVICE",
        help="cpu, cuda or cuda:N (default: the CPU and, where there is one, the GPU)",
    )
    check.add_argument(
        "--op",
        action="append",
        metavar="NAME",
        help="only this op; may be repeated (default: all)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    # Each command's modules are imported here: info must work where the demo's packages are not.
    try:
        if args.command == "info":
            from torchcalc.cli import info

            return info.run()
        if args.command == "check":
            from torchcalc.cli import check

            return check.run(args.op, args.device)
        if args.command == "demo":
            if len(set(args.seeds)) < len(args.seeds):
                raise SystemExit(_error("demo: argument --seeds: the same seed twice"))
            del args.command
            from torchcalc.cli.demo import run

            return run.run(Settings(**{**vars(args), "seeds": tuple(args.seeds)}))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        return _error(f"the demo needs {error.name}: pip install torchcalc[demo]")
    except KeyboardInterrupt:
        return 130  # what a shell reports for it
    parser.print_help()
    return 0


def _error(message: str) -> int:
    print(f"torchcalc: error: {message}", file=sys.stderr)
    return 2
