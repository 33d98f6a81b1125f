"""The calculus of z = x W^T + b, out of torch's operations.

x [*, K], W [N, K], b [N] and z [*, N]; or, ``batched``, of a batch of such: x [B, M, K],
W [B, N, K], b [B, N], z [B, M, N].
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torchcalc.ops._autograd import in_front


def rows(t: Tensor) -> Tensor:
    """[*, N] as a matrix."""
    return t if t.dim() == 2 else t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


def input_grad(dz: Tensor, weight: Tensor) -> Tensor:
    """Of z = x W^T."""
    # Of one row not dz W: torch has no forward derivative of that under a vectorised jacobian.
    return dz @ weight if dz.dim() > 1 else weight.mT @ dz


def weight_grad(dz: Tensor, x: Tensor, batched: bool, weight: Tensor | None = None) -> Tensor:
    """Of z = x W^T, or of a batch of such; in memory as the weight, if that is given."""
    if batched:
        return dz.mT @ x
    if dz.dim() == 1:
        return dz.unsqueeze(1) * x
    if weight is not None and is_by_columns(weight):
        return (rows(x).t() @ rows(dz)).t()
    return rows(dz).t() @ rows(x)


def is_by_columns(weight: Tensor) -> bool:
    """Whether it is the transpose of a contiguous matrix. Then its gradient is to be one, too, or
    autograd would copy it into that order."""
    return not weight.is_contiguous() and weight.t().is_contiguous()


def empty_as(weight: Tensor, like: Tensor) -> Tensor:
    """What a fake kernel returns for the gradient of a weight."""
    if is_by_columns(weight):
        return like.new_empty(weight.shape[::-1]).t()
    return like.new_empty(weight.shape)


def bias_grad(dz: Tensor, batched: bool) -> Tensor:
    """Of z = x W^T + b, or of a batch of such."""
    return dz.sum(1) if batched else rows(dz).sum(0)


def linear_tangent(
    x: Tensor, weight: Tensor, t_x: Tensor | None, t_weight: Tensor | None, t_bias: Tensor | None
) -> Tensor:
    """Of z = x W^T + b."""
    t_z = x.new_zeros(*x.shape[:-1], weight.shape[-2])
    if t_x is not None:
        t_z = t_z + t_x @ weight.mT
    if t_weight is not None:
        t_z = t_z + x @ t_weight.mT
    if t_bias is not None:
        t_z = t_z + (t_bias.unsqueeze(1) if weight.dim() == 3 else t_bias)
    return t_z


def layer_grads(
    dz: Tensor, x: Tensor | None, weight: Tensor | None, batched: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dW; none without weight, and none without x."""
    return (
        None if weight is None else input_grad(dz, weight),
        None if x is None else weight_grad(dz, x, batched, weight),
    )


def in_one_call(grad: Tensor, batched: bool) -> bool:
    """Whether backward asks one op for all gradients of a layer.

    Not where it is recorded, as each of the operations is then; nor for subclasses, such as
    DTensor, which know the operations.
    """
    return not (batched or torch.is_grad_enabled()) and type(grad) is Tensor


def sample_layer_grads(
    dz: Tensor, x: Tensor | None, weight: Tensor | None, in_dims: tuple[int | None, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The same of each sample dz [B, *, N], x and weight being vmapped in ``in_dims``."""
    size = dz.shape[0]
    dx = dweight = None
    if weight is not None and in_dims[1] is None:
        dx = dz @ weight
    elif weight is not None:
        each = in_front(weight, in_dims[1], size)
        dx = (_matrices(dz) @ each).reshape(*dz.shape[:-1], weight.shape[-1])
    if x is not None:
        x = in_front(x, in_dims[0], size)
        dweight = (
            dz.unsqueeze(2) * x.unsqueeze(1) if dz.dim() == 2 else _matrices(dz).mT @ _matrices(x)
        )
    return dx, dweight


def sample_bias_grad(dz: Tensor) -> Tensor:
    """``bias_grad`` of each sample dz [B, *, N]."""
    leading = tuple(range(1, dz.dim() - 1))
    return dz.sum(leading) if leading else dz


def _matrices(t: Tensor) -> Tensor:
    return t if t.dim() == 3 else t.unsqueeze(1) if t.dim() == 2 else t.flatten(1, -2)


def or_empty(like: Tensor, gradients: Iterable[Tensor | None], *lead: int) -> tuple[Tensor, ...]:
    """What an op returns, which has no optional results."""
    return tuple(like.new_empty(*lead, 0) if t is None else t for t in gradients)
