"""The parser of the command line, and which module runs each command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from torchcalc import __version__
from torchcalc.cli import arguments
from torchcalc.cli.demo.settings import Settings
from torchcalc.cli.features.settings import DATA, LAMS
from torchcalc.cli.features.settings import Settings as FeatureSettings
from torchcalc.testing.models import MODELS

_EXTRAS = ("sklearn", "matplotlib", "rich")

# Of each command: the line in the list of commands, the text above its options and the one below.
_DEMO = (
    "train dense, sparse and compacted models and compare them",
    """\
Trains the same MLP (64-256-256-10, gelu, dropout 0.1) on scikit-learn's handwritten digits three
times, from the same initial weights, on the same batches, with the same learning rate and steps:

  dense         nn.Linear, nn.GELU, nn.Dropout, torch.optim.AdamW
  L1            torchcalc.nn.LinearAct, torchcalc.optim.AdamW with L1 on the weights
  group-sparse  the same with GroupL2 on what a hidden neuron reads (rows of the first weight) and
                on what reads it (columns of the others)
  compacted     torchcalc.sparsity.compact of the group-sparse model, as it is: not trained further

Prints a table of the four and writes report.json, sparse.pt and compacted.pt (state_dicts of the L1
and the compacted model, of the first seed), compacted.png, training.png and weights.png. Nothing is
downloaded. The default of --group-lam was chosen on a part of the training digits.

compacted.pt loads with torch.load(..., weights_only=True) into
torchcalc.cli.demo.models.sparse(widths); report.json has the widths under "architecture".""",
    """\
figures (means over the seeds):
  test accuracy         share of the 450 digits kept for testing that are named rightly
  exactly zero weights  share of the weight matrices' elements that are 0.0; biases do not count
  hidden neurons        of both hidden layers together
  parameters, size      biases included
  inference             median of 101 forward passes of 1024 digits in eval and inference mode, the
                        models taking turns, on one CPU thread or on the GPU
  training              median over all steps of forward + backward + optimizer, on one CPU thread
                        or on the GPU; without evaluation and without fetching the batch
  saved for backward    bytes that autograd keeps from forward to backward in one step: every saved
                        tensor's storage once, the loss's included, parameters not""",
)
_FEATURES = (
    "find the inputs that a model needs, by name",
    f"""\
Trains an MLP (32 hidden units, relu) on a table that scikit-learn ships, with GroupL2 on the
columns of the first weight: all weights of an input are a group, so that what is not needed becomes
exactly zero. Says which inputs survive, in how many seeds, and how good a model of them is beside
the dense one, which is trained alike without the penalty. Writes report.json and features.png.
Nothing is downloaded.

A quarter of the rows is for testing, the same for every seed, and nothing is chosen by it. A seed
draws initial weights and a fifth of the other rows for validation. Inputs are standardised with
mean and deviation of the training rows. The strength is one for all seeds, by the rule of one
standard error: of 0, {", ".join(f"{lam:g}" for lam in LAMS)} the largest
whose validation loss, a mean over the seeds, is within one standard error of the smallest.""",
    """\
figures (means over the seeds):
  test accuracy  share of the test rows that are classified rightly; the model that was selected is
                 not trained again without its penalty
  stability      Jaccard index |a and b| / |a or b| of the surviving inputs of two seeds, mean over
                 all pairs; the training rows of two seeds have about four fifths in common""",
)
_INFO = ("print versions, build, SIMD level and devices", "What this torchcalc is made of.")
_CHECK = (
    "check the derivatives of every op on this machine",
    """\
Compares every op's derivatives with finite differences, in float64: first derivatives in reverse
mode (gradcheck) and in forward mode (forward AD), second derivatives in reverse over reverse and in
forward over reverse mode (gradgradcheck). Exits with 1 if anything fails.""",
)
_FUSE = (
    "fuse a small model and show what became of it",
    """\
Builds a model with random weights, calls torchcalc.fuse on it and prints its report, then the time
of a training step (forward, backward, AdamW) before and after. Nothing is downloaded; models of
transformers, timm and torchvision need these packages.""",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchcalc",
        description="torchcalc: the calculus of training as fused, differentiable PyTorch kernels.",
    )
    parser.add_argument("--version", action="version", version=f"torchcalc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str, run: Callable[..., int], summary: str, text: str, epilog: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run, parser=command)
        return command

    _add_demo_options(add("demo", _run_demo, *_DEMO))
    _add_features_options(add("features", _run_features, *_FEATURES))
    add("info", _run_info, _INFO[0], _INFO[1])
    _add_fuse_options(add("fuse", _run_fuse, _FUSE[0], _FUSE[1]))
    _add_check_options(add("check", _run_check, _CHECK[0], _CHECK[1]))
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
        help="seeds of initial weights, batches and dropout; each trains all models "
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
        help="learning rate of all models (default: %(default)s)",
    )
    option(
        "--lam",
        type=arguments.strength,
        default=default.lam,
        metavar="LAM",
        help="strength of the L1 penalty (default: %(default)s)",
    )
    option(
        "--group-lam",
        type=arguments.strength,
        default=default.group_lam,
        metavar="LAM",
        help="strength of the group-sparse model's GroupL2 penalty (default: %(default)s)",
    )
    option(
        "--device",
        type=arguments.device,
        default=default.device,
        metavar="DEVICE",
        help="cpu, cuda or cuda:N (default: %(default)s)",
    )


def _add_features_options(features: argparse.ArgumentParser) -> None:
    default = FeatureSettings()

    def option(name: str, **options: object) -> None:
        features.add_argument(name, **options)  # type: ignore[arg-type]

    option(
        "--out",
        type=Path,
        default=default.out,
        metavar="DIR",
        help="folder for the results, made if missing (default: %(default)s)",
    )
    option(
        "--data",
        choices=DATA,
        default=default.data,
        metavar="NAME",
        help=f"{', '.join(DATA)} (default: %(default)s)",
    )
    option(
        "--seeds",
        type=arguments.seed,
        nargs="+",
        default=list(default.seeds),
        metavar="SEED",
        help="seeds of initial weights and of the rows for validation "
        f"(default: {' '.join(map(str, default.seeds))})",
    )
    option(
        "--steps",
        type=arguments.count,
        default=default.steps,
        metavar="N",
        help="training steps of each model, with all rows (default: %(default)s)",
    )
    option(
        "--lr",
        type=arguments.rate,
        default=default.lr,
        metavar="LR",
        help="learning rate (default: %(default)s)",
    )
    option(
        "--weight-decay",
        type=arguments.strength,
        default=default.weight_decay,
        metavar="DECAY",
        help="AdamW's weight decay, of both models (default: %(default)s)",
    )
    option(
        "--lam",
        type=arguments.strength,
        default=default.lam,
        metavar="LAM",
        help="strength of the penalty (default: chosen by the rule above)",
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


def _add_fuse_options(fuse: argparse.ArgumentParser) -> None:
    fuse.add_argument(
        "--model",
        choices=MODELS,
        default="transformer",
        metavar="NAME",
        help="which: see below (default: %(default)s)",
    )
    fuse.add_argument(
        "--size",
        choices=("small", "full"),
        default="small",
        help="width 256 and 512 tokens; or width 768 and 1024 tokens, as in the benchmarks "
        "(default: %(default)s)",
    )
    fuse.add_argument(
        "--rounds",
        type=arguments.count,
        default=21,
        metavar="N",
        help="training steps that are measured of each (default: %(default)s)",
    )
    fuse.epilog = "models: " + ", ".join(MODELS)


# Each command's modules are imported here: info must work where the demo's packages are not.


def _run_demo(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    return _run_trainings("torchcalc.cli.demo.run", "the demo", Settings, args, parser)


def _run_features(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    return _run_trainings("torchcalc.cli.features.run", "features", FeatureSettings, args, parser)


def _run_trainings(
    module: str,
    what: str,
    settings: type[Settings | FeatureSettings],
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
) -> int:
    if len(set(args.seeds)) < len(args.seeds):
        parser.error("argument --seeds: names a seed twice")
    try:
        run = importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        print(f"{what} needs {package}: pip install torchcalc[demo]", file=sys.stderr)
        return 1
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    if not os.access(args.out, os.W_OK):
        parser.error(f"argument --out: {args.out} is not writable")
    options = {field.name: getattr(args, field.name) for field in fields(settings)}
    return int(run.run(settings(**{**options, "seeds": tuple(args.seeds)})))


def _run_info(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from torchcalc.cli import info

    return info.run()


def _run_fuse(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from torchcalc.cli import fuse

    package = fuse.missing(args.model)
    if package is not None:
        print(f"{args.model} needs {package}: pip install {package}", file=sys.stderr)
        return 1
    return fuse.run(args.model, args.size, args.rounds)


def _run_check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from torchcalc.cli import check

    try:
        chosen = check.select(args.op)
    except ValueError as error:
        parser.error(f"argument --op: {error}")
    return check.run(chosen, args.device)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return int(args.run(args, args.parser))
    except KeyboardInterrupt:
        return 130  # what a shell reports for it
