"""Types of command line arguments: bad values become argparse's one-line errors."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError

import torch

from torchcalc import ops

_SEEDS = 2**63  # what both torch.manual_seed and torchcalc's masks take


def count(text: str) -> int:
    """An integer >= 1."""
    return _integer(text, 1, None)


def seed(text: str) -> int:
    """An integer in [0, 2^63)."""
    return _integer(text, 0, _SEEDS)


def _integer(text: str, low: int, high: int | None) -> int:
    wanted = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high})"
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be {wanted}, got {text!r}") from None
    if value < low or (high is not None and value >= high):
        raise ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return value


def strength(text: str) -> float:
    """A finite number >= 0."""
    value = _number(text, ">= 0")
    if value < 0:
        raise ArgumentTypeError(f"must be a finite number >= 0, got {text!r}")
    return value


def rate(text: str) -> float:
    """A finite number > 0."""
    value = _number(text, "> 0")
    if value <= 0:
        raise ArgumentTypeError(f"must be a finite number > 0, got {text!r}")
    return value


def _number(text: str, bound: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"must be a finite number {bound}, got {text!r}")
    return value


def device(text: str) -> torch.device:
    """A device that is here and that torchcalc has kernels for."""
    try:
        chosen = torch.device(text)
    except RuntimeError:
        raise ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentTypeError(f"{text!r}: torch {torch.__version__} finds no CUDA here")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise ArgumentTypeError(
                f"{text!r}: there are only {torch.cuda.device_count()} CUDA devices"
            )
        if not ops.is_native(chosen):
            raise ArgumentTypeError(f"{text!r}: torchcalc was built without its CUDA kernels")
    return chosen
