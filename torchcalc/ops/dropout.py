"""Autograd Functions of seeded dropout: y = kept ? x * scale : 0, the mask drawn from the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import Function, apply, vmap_by_loop


class Dropout(Function):
    """Linear in x: forward, backward and jvp are the same op with the same mask."""

    @staticmethod
    def forward(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
        y: Tensor = torch.ops.torchcalc.dropout(x, seed, threshold)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, seed, ctx.threshold = inputs
        ctx.save_for_backward(seed)
        ctx.save_for_forward(seed)

    @staticmethod
    def backward(ctx: Any, c_y: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        return dropout(c_y, seed, ctx.threshold), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return vmap_by_loop(dropout, info, in_dims, args)

    @staticmethod
    def tangents(ctx: Any, saved: Any, t_x: Tensor, *_: Any) -> Tensor:
        return dropout(t_x, saved[0], ctx.threshold)


def dropout(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """Dropout with ``threshold`` = round(65536 p) > 0; seed: one int64 element."""
    y: Tensor = apply(Dropout, x, seed, threshold)
    return y


class DropoutMask(torch.autograd.Function):
    """The mask as a bool tensor; not differentiable, a Function for its vmap rule alone."""

    @staticmethod
    def forward(shape: tuple[int, ...], seed: Tensor, threshold: int) -> Tensor:
        mask: Tensor = torch.ops.torchcalc.dropout_mask(shape, seed, threshold)
        return mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return vmap_by_loop(DropoutMask.apply, info, in_dims, args)


def dropout_mask(shape: tuple[int, ...], seed: Tensor, threshold: int) -> Tensor:
    """Bool [*shape], True where an element is kept."""
    mask: Tensor = DropoutMask.apply(shape, seed, threshold)  # type: ignore[no-untyped-call]
    return mask


@torch.library.register_fake("torchcalc::dropout")
def _(x, seed, threshold):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.register_fake("torchcalc::dropout_mask")
def _(shape, seed, threshold):  # type: ignore[no-untyped-def]
    return seed.new_empty(shape, dtype=torch.bool)
