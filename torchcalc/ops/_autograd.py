"""What every family's autograd Functions share."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Outputs = Tensor | tuple[Tensor, ...]


class Function(torch.autograd.Function):
    """An autograd Function whose forward-mode rule is ``tangents(ctx, saved, *tangents)``.

    ``saved`` is what ``ctx.save_for_forward`` was given. The rule is no ``jvp``, because Dynamo
    refuses a Function that has one: the subclass ``WithJvp``, made here, is for eager mode.
    """

    WithJvp: ClassVar[type[torch.autograd.Function]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        rule = cls.__dict__.get("tangents")
        if rule is not None:
            namespace = {"jvp": staticmethod(_as_jvp(rule.__func__)), "__module__": cls.__module__}
            cls.WithJvp = types.new_class(
                f"{cls.__name__}WithJvp", (cls,), exec_body=lambda body: body.update(namespace)
            )


def _as_jvp(rule: Callable[..., Any]) -> Callable[..., Any]:
    # torch calls jvp with forward mode off, for all levels of nested forward mode: what a rule
    # computes with plain operations would lose the outer levels' tangents and silently be 0. So
    # forward mode is on in here, and this level's tangents are taken off instead.
    def primal(t: Any) -> Any:
        return forward_ad.unpack_dual(t).primal if isinstance(t, Tensor) else t  # type: ignore[no-untyped-call]

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = tuple(map(primal, ctx.saved_for_forward))
            return rule(ctx, saved, *map(primal, tangents))

    return jvp


def apply(function: type[Function], *args: Any) -> Any:
    """``function.apply``, with forward-mode derivatives outside of torch.compile."""
    if torch.compiler.is_compiling():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return function.WithJvp.apply(*args)  # type: ignore[no-untyped-call]


def vmap_by_loop(
    function: Callable[..., Outputs], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Outputs, int | tuple[int, ...]]:
    """A vmap rule: one sample after the other, results stacked in front."""

    def sample(b: int) -> Outputs:
        pairs = zip(args, in_dims, strict=True)
        return function(*(a.select(d, b) if isinstance(d, int) else a for a, d in pairs))

    size = info.batch_size
    if size == 0:  # a sample of zeros tells the shapes
        args = tuple(
            a.new_zeros([1 if i == d else n for i, n in enumerate(a.shape)])
            if isinstance(d, int)
            else a
            for a, d in zip(args, in_dims, strict=True)
        )
    results = [sample(b) for b in range(max(size, 1))]
    if isinstance(results[0], Tensor):
        return torch.stack(results)[:size], 0  # type: ignore[arg-type]
    stacked = tuple(torch.stack(parts)[:size] for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def matrix_rows(t: Tensor, dim: int | None) -> int:
    """M of a vmapped matrix, [M, N] in each sample."""
    return t.shape[0 if dim is None or dim > 0 else 1]


def fold(t: Tensor, dim: int | None, size: int) -> Tensor:
    """A vmapped matrix, ``size`` times [M, N], as one of size * M rows."""
    stacked = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return stacked.flatten(0, 1)


def unfold(t: Tensor, rows: int, size: int) -> Tensor:
    """[size * rows, N] as [size, rows, N]."""
    return t.reshape(size, rows, t.shape[1])


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
