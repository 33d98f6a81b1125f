"""What every family's autograd Functions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]


class Function(torch.autograd.Function):
    """An autograd Function in two classes, because Dynamo refuses one that defines ``jvp``.

    The class itself has none and is for tracing; its subclass ``WithJvp`` is for eager mode.
    """

    WithJvp: ClassVar[type[torch.autograd.Function]]


def apply(function: type[Function], *args: Any) -> Any:
    """``function.apply``, with forward-mode derivatives outside of torch.compile."""
    if torch.compiler.is_compiling():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return function.WithJvp.apply(*args)  # type: ignore[no-untyped-call]


def vmap_by_loop(
    function: Callable[..., Outputs], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Outputs, int | tuple[int, ...]]:
    """A vmap rule: one sample after the other, results stacked in front."""
    results = [
        function(*(a if d is None else a.select(d, b) for a, d in zip(args, in_dims, strict=True)))
        for b in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0  # type: ignore[arg-type]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def batch_first(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """``t`` with its vmapped dimension, a new one of ``size`` where it has none, in front."""
    if t is None:
        return None
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def vjp(function: Callable[..., Outputs], primals: tuple[Tensor, ...], cotangents: Outputs) -> Any:
    """Cotangents of ``primals`` for a plain PyTorch function; differentiable again."""
    return torch.func.vjp(function, *primals)[1](cotangents)


def jvp(
    function: Callable[..., Outputs], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> Any:
    """Tangents of a plain PyTorch function's results, as the transpose of its transpose.

    Forward mode does not nest inside a Function's own ``jvp``; reverse mode does.
    """
    zeros = tuple(torch.zeros_like(y) for y in function(*primals))
    return torch.func.vjp(lambda *c: vjp(function, primals, c), *zeros)[1](tangents)
