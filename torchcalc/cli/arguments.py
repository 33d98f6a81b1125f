"""Types of command line arguments: bad values become argparse's one-line errors."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

import torch

from torchcalc import ops


def count(text: str) -> int:
    """An integer >= 1."""
    return _integer(text, ">= 1", range(1, 2**63))


def seed(text: str) -> int:
    """An integer that both torch.manual_seed and torchcalc's masks take."""
    return _integer(text, "in [0, 2^63)", range(2**63))


def _integer(text: str, bound: str, allowed: range) -> int:
    try:
        value = int(text)
    except ValueError:
        value = allowed.start - 1
    if value not in allowed:
        raise ArgumentTypeError(f"must be an integer {bound}, got {text!r}")
    return value


def strength(text: str) -> float:
    """A finite number >= 0."""
    return _number(text, ">= 0", lambda value: value >= 0)


def rate(text: str) -> float:
    """A finite number > 0."""
    return _number(text, "> 0", lambda value: value > 0)


def _number(text: str, bound: str, is_in: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and is_in(value)):
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
