"""Seeded dropout: y = residual + (kept ? scale x + shift : fill), the mask drawn from the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchcalc import _check
from torchcalc.ops._autograd import (
    Function,
    Kernels,
    implement,
    in_front,
    register,
    register_vmap,
)
from torchcalc.ops._mask import sample_seeds
from torchcalc.reference import dropout as reference


class _Dropout(Function):
    """Linear in x but for constants: backward and jvp are the same op with the same mask."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        seed: Tensor,
        *options: Any,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(seed)
        kernels.save_for_forward(ctx, seed)
        ctx.linear = *options[:-2], 0.0, 0.0
        y: Tensor = kernels.dropout(x, residual, seed, *options)
        return y

    @staticmethod
    def backward(ctx: Any, c_y: Tensor) -> tuple[Any, ...]:
        need_x, need_residual = ctx.needs_input_grad[:2]
        dx = dropout(c_y, None, ctx.saved_tensors[0], *ctx.linear) if need_x else None
        return dx, c_y if need_residual else None, None, *[None] * len(ctx.linear)

    @staticmethod
    def tangents(
        ctx: Any, saved: Any, t_x: Tensor | None, t_residual: Tensor | None, *_: Any
    ) -> Tensor | None:
        if t_x is None:
            return t_residual
        t_y: Tensor = dropout(t_x, t_residual, saved[0], *ctx.linear)
        return t_y


# dropout(x, residual, seed, threshold, samples, block, shared, scale, shift, fill): threshold =
# round(65536 p) > 0, ``shared`` elements in a row are dropped or kept together; the rest: _mask.py.
dropout = register("dropout", _Dropout, reference.dropout)

# dropout_mask(shape, seed, threshold, samples, block, packed): bool [*shape], True where an element
# is kept; or a bit for each, uint8.
dropout_mask = torch.ops.torchcalc.dropout_mask.default
implement("dropout_mask", reference.dropout_mask, "CompositeExplicitAutograd")


def _vmap_dropout(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    size = info.batch_size
    x, residual = (in_front(args[i], in_dims[i], size) for i in (0, 1))
    seed, threshold, samples, *rest = args[2:]
    seed = sample_seeds(seed, in_dims[2], size, samples)
    return dropout(x, residual, seed, threshold, samples * size, *rest), 0


def _vmap_mask(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    shape, seed, threshold, samples, block, packed = args
    size = info.batch_size
    seeds = sample_seeds(seed, in_dims[1], size, samples)
    mask = dropout_mask([size, *shape], seeds, threshold, samples * size, block, packed)
    if packed:  # without a dimension of samples where there is one
        each = (size,) if samples == 1 else (size, samples)
        mask = mask.reshape(*each, mask.shape[-1])
    return mask, 0


register_vmap("dropout", _vmap_dropout)
register_vmap("dropout_mask", _vmap_mask)


@torch.library.register_fake("torchcalc::dropout")
def _(x, residual, seed, *options):  # type: ignore[no-untyped-def]
    if options[1] == 1:
        _check.dropout("dropout", x, residual, seed)
    return x.new_empty(x.shape)


@torch.library.register_fake("torchcalc::dropout_mask")
def _(shape, seed, threshold, samples, block, packed):  # type: ignore[no-untyped-def]
    if not packed:
        return seed.new_empty(shape, dtype=torch.bool)
    numel = 1
    for n in shape:
        numel = numel * n
    size = (numel // samples + 7) // 8 if samples != 0 else 0
    return seed.new_empty([size] if samples == 1 else [samples, size], dtype=torch.uint8)
