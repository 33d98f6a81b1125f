"""Seeded dropout: y = kept ? x * scale : 0, the mask drawn from the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchcalc import _check
from torchcalc.ops._autograd import (
    Function,
    Kernels,
    implement,
    register,
    register_vmap,
    vmap_by_loop,
)
from torchcalc.reference import dropout as reference


class _Dropout(Function):
    """Linear in x: forward, backward and jvp are the same op with the same mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, threshold: int, *, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(seed)
        kernels.save_for_forward(ctx, seed)
        ctx.threshold = threshold
        y: Tensor = kernels.dropout(x, seed, threshold)
        return y

    @staticmethod
    def backward(ctx: Any, c_y: Tensor) -> tuple[Tensor, None, None]:
        return dropout(c_y, ctx.saved_tensors[0], ctx.threshold), None, None

    @staticmethod
    def tangents(ctx: Any, saved: Any, t_x: Tensor, *_: Any) -> Tensor:
        y: Tensor = dropout(t_x, saved[0], ctx.threshold)
        return y


# dropout(x, seed, threshold), with threshold = round(65536 p) > 0 and seed one int64 element.
dropout = register("dropout", _Dropout, reference.dropout)


def _mask(shape: list[int], seed: Tensor, threshold: int) -> Tensor:
    return reference.dropout_mask(shape, seed, threshold)


# dropout_mask(shape, seed, threshold): bool [*shape], True where an element is kept.
dropout_mask = torch.ops.torchcalc.dropout_mask.default
implement("dropout_mask", _mask, "CompositeExplicitAutograd")

for _name, _op in (("dropout", dropout), ("dropout_mask", dropout_mask)):
    register_vmap(_name, lambda info, in_dims, *args, op=_op: vmap_by_loop(op, info, in_dims, args))


@torch.library.register_fake("torchcalc::dropout")
def _(x, seed, threshold):  # type: ignore[no-untyped-def]
    _check.dropout(x, seed)
    return x.new_empty(x.shape)


@torch.library.register_fake("torchcalc::dropout_mask")
def _(shape, seed, threshold):  # type: ignore[no-untyped-def]
    return seed.new_empty(shape, dtype=torch.bool)
