"""Autograd Functions of linear + activation + dropout: y = residual + dropout(f(x W^T + b)).

Matrices only: x [M, K], weight [N, K], bias [N], residual and y [M, N]; ``functional`` flattens.
"""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import Function, apply, fold, matrix_rows, unfold, vmap_by_loop
from torchcalc.reference import linear_act as reference

# A name's position is its code in csrc/math/activations.h.
ACTIVATIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")

# Orders of the derivative that have a kernel; higher ones come from the reference.
_KERNEL_ORDERS = 2


class Saved(enum.IntEnum):
    """What forward keeps for the derivative; the numbering of csrc/ops/args.h."""

    NOTHING = 0
    PRE_ACTIVATION = 1  # z
    ACTIVATION = 2  # a, before dropout and residual
    OUTPUT = 3  # y itself


def saved_kind(activation: str, has_residual: bool) -> Saved:
    """The least that the derivative needs: y where it tells a, z where f' needs z, or nothing."""
    if activation == "identity":
        return Saved.NOTHING
    if activation not in reference.FROM_OUTPUT:
        return Saved.PRE_ACTIVATION
    return Saved.ACTIVATION if has_residual else Saved.OUTPUT


class ActGrad(Function):
    """dz = mask(scale * F_order(u) * grad), and dbias = dz summed over rows; linear in grad.

    Its own derivative is the same Function, at the next order where u is concerned.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        saved: Tensor | None,
        seed: Tensor | None,
        activation: str,
        order: int,
        threshold: int,
        kind: int,
        bias_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        code = ACTIVATIONS.index(activation)
        dz, dbias = torch.ops.torchcalc.act_grad(
            grad, saved, seed, code, order, threshold, kind, bias_grad
        )
        return dz, dbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad, saved, seed, *ctx.options = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, saved, seed)
        ctx.save_for_forward(grad, saved, seed)

    @staticmethod
    def backward(ctx: Any, c_dz: Tensor | None, c_dbias: Tensor | None) -> tuple[Any, ...]:
        grad, saved, seed = ctx.saved_tensors
        activation, order, threshold, kind, bias_grad = ctx.options
        cotangent = c_dz
        if bias_grad and c_dbias is not None:
            cotangent = c_dbias.expand_as(grad) if c_dz is None else c_dz + c_dbias
        if cotangent is None:
            return (None,) * 8
        d_grad = d_saved = None
        if ctx.needs_input_grad[0]:
            d_grad = act_grad(cotangent, saved, seed, activation, order, threshold, kind)
        if saved is not None and ctx.needs_input_grad[1]:
            d_saved = act_grad(
                cotangent * grad, saved, seed, activation, order + 1, threshold, kind
            )
        return d_grad, d_saved, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        grad, saved, _, activation, order, threshold, kind, bias_grad = args
        if threshold:  # the mask starts anew with each sample
            return vmap_by_loop(lambda *a: apply(ActGrad, *a), info, in_dims, args)
        size, rows = info.batch_size, matrix_rows(grad, in_dims[0])
        grad = fold(grad, in_dims[0], size)
        if saved is not None:
            saved = fold(saved, in_dims[1], size)
        dz = unfold(act_grad(grad, saved, None, activation, order, 0, kind), rows, size)
        return (dz, dz.sum(1) if bias_grad else dz.new_empty(0)), (0, 0 if bias_grad else None)

    @staticmethod
    def tangents(
        ctx: Any, saved_for_forward: Any, t_grad: Tensor | None, t_saved: Tensor | None, *_: Any
    ) -> tuple[Tensor, Tensor]:
        grad, saved, seed = saved_for_forward
        activation, order, threshold, kind, bias_grad = ctx.options
        t_dz = torch.zeros_like(grad)
        if t_grad is not None:
            t_dz = act_grad(t_grad, saved, seed, activation, order, threshold, kind)
        if t_saved is not None:
            t_dz = t_dz + act_grad(
                grad * t_saved, saved, seed, activation, order + 1, threshold, kind
            )
        return t_dz, t_dz.sum(0) if bias_grad else t_dz.new_empty(0)


def act_grad(
    grad: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    activation: str,
    order: int,
    threshold: int,
    kind: int,
) -> Tensor:
    """dz of ``ActGrad``, of any order."""
    if order > _KERNEL_ORDERS:
        return reference.act_grad(
            grad, saved, seed, activation, order, threshold, kind == Saved.OUTPUT
        )
    dz: Tensor = apply(ActGrad, grad, saved, seed, activation, order, threshold, kind, False)[0]
    return dz


class LinearAct(Function):
    """(y, kept) = linear_act(x, weight, bias, residual), kept being what ``kind`` asks for.

    ``kept`` is a differentiable output: second derivatives reach z through it.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        seed: Tensor | None,
        activation: str,
        threshold: int,
        kind: int,
    ) -> tuple[Tensor, Tensor]:
        code = ACTIVATIONS.index(activation)
        y, kept = torch.ops.torchcalc.linear_act(
            x, weight, bias, residual, seed, code, threshold, kind
        )
        return y, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, _, seed, *ctx.options = inputs
        y, kept = output
        kind = ctx.options[2]
        saved = y if kind == Saved.OUTPUT else kept if kind != Saved.NOTHING else None
        ctx.set_materialize_grads(False)
        ctx.traced = torch.compiler.is_compiling()
        # x and weight are kept only for the gradients that need them, as F.linear does.
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None, saved, seed)
        ctx.save_for_forward(x, weight, bias, saved, seed)

    @staticmethod
    def backward(ctx: Any, c_y: Tensor | None, c_kept: Tensor | None) -> tuple[Any, ...]:
        x, weight, saved, seed = ctx.saved_tensors
        activation, threshold, kind = ctx.options
        need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
        dz = dbias = None
        if c_y is not None:
            dz, dbias = apply(ActGrad, c_y, saved, seed, activation, 1, threshold, kind, need_bias)
        # A traced backward is not differentiated again, and gets zeros here where eager gets None.
        if c_kept is not None and kind != Saved.NOTHING and not ctx.traced:
            through_kept = c_kept
            if kind == Saved.ACTIVATION:
                through_kept = act_grad(c_kept, saved, None, activation, 1, 0, kind)
            dz = through_kept if dz is None else dz + through_kept
            dbias = dz.sum(0) if need_bias else None
        if dz is None:
            return (None,) * 8
        return (
            dz @ weight if need_x else None,
            dz.t() @ x if need_weight else None,
            dbias if need_bias else None,
            c_y if need_residual else None,
            None,
            None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        x, weight, bias, residual, _, activation, threshold, kind = args
        shared_weight = in_dims[1] is None and in_dims[2] is None
        if threshold or not shared_weight:  # a mask or a GEMM of its own for each sample
            return vmap_by_loop(lambda *a: apply(LinearAct, *a), info, in_dims, args)
        size, rows = info.batch_size, matrix_rows(x, in_dims[0])
        x = fold(x, in_dims[0], size)
        if residual is not None:
            residual = fold(residual, in_dims[3], size)
        y, kept = apply(LinearAct, x, weight, bias, residual, None, activation, 0, kind)
        if kind in (Saved.PRE_ACTIVATION, Saved.ACTIVATION):
            return (unfold(y, rows, size), unfold(kept, rows, size)), (0, 0)
        return (unfold(y, rows, size), kept), (0, None)

    @staticmethod
    def tangents(
        ctx: Any,
        saved_for_forward: Any,
        t_x: Tensor | None,
        t_weight: Tensor | None,
        t_bias: Tensor | None,
        t_residual: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, Tensor]:
        x, weight, bias, saved, seed = saved_for_forward
        activation, threshold, kind = ctx.options
        if saved is None and activation != "identity":  # no backward was expected
            kind = saved_kind(activation, True)
            _, saved = apply(LinearAct, x, weight, bias, None, None, activation, 0, kind)
        t_z = x.new_zeros(x.shape[0], weight.shape[0])
        if t_x is not None:
            t_z = t_z + t_x @ weight.t()
        if t_weight is not None:
            t_z = t_z + x @ t_weight.t()
        if t_bias is not None:
            t_z = t_z + t_bias
        t_y = act_grad(t_z, saved, seed, activation, 1, threshold, kind)
        if t_residual is not None:
            t_y = t_y + t_residual
        kept = ctx.options[2]
        if kept == Saved.PRE_ACTIVATION:
            return t_y, t_z
        if kept == Saved.ACTIVATION:
            return t_y, act_grad(t_z, saved, None, activation, 1, 0, kind)
        return t_y, t_y.new_empty(0)


@torch.library.register_fake("torchcalc::linear_act")
def _(x, weight, bias, residual, seed, activation, threshold, saved):  # type: ignore[no-untyped-def]
    shape = (x.shape[0], weight.shape[0])
    has_kept = saved in (Saved.PRE_ACTIVATION, Saved.ACTIVATION)
    return x.new_empty(shape), x.new_empty(shape if has_kept else (0,))


@torch.library.register_fake("torchcalc::act_grad")
def _(grad, saved, seed, activation, order, threshold, saved_kind, bias_grad):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape[1] if bias_grad else 0)
