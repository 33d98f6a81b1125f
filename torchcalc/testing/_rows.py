"""What a row of the op table is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SEED = 2024

# What a row may skip, with a reason. Forward, compile, opcheck and bad input apply to every op.
MODES = ("gradcheck", "gradgradcheck", "forward AD", "vmap", "autocast", "layouts")

LANE_RANGE = 65536

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Sample:
    """One input: ``call(*inputs)`` is the op, ``reference(*inputs)`` the same in plain PyTorch."""

    name: str
    inputs: tuple[Tensor, ...]
    call: Call
    reference: Call


Samples = Callable[[torch.device, torch.dtype], Iterator[Sample]]


@dataclass(frozen=True)
class Op:
    """A row of the table.

    ``samples`` are small, with every argument in use; ``shapes`` are odd, prime, empty, width-1 and
    larger than a kernel's block. ``skip`` maps one of ``MODES`` that does not apply to the reason.
    ``by_formula``: its derivatives are PyTorch's of a formula, and have no kernels of their own.
    """

    name: str
    samples: Samples
    shapes: Samples
    skip: Mapping[str, str] = field(default_factory=dict)
    by_formula: bool = False


class Random:
    """Tensors that are the same on every device and, but for rounding, in every dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.generator = torch.Generator().manual_seed(SEED)

    def __call__(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(**self.options)


SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (7,),
    (0,),
    (2, 0, 3),
    (8,),
    (3, 1),
    (5, 13, 11),
    (1024,),
    (1025,),
    (40_009,),  # more than one task of a thread
)
