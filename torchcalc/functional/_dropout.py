"""Seeded dropout of every kind, and its mask."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from torchcalc import _check
from torchcalc._check import (
    autocast_dtype,
    check_flag,
    check_floating,
    check_seed,
    check_shape,
    check_shard,
    check_size,
    dropout_threshold,
    is_sharded,
)
from torchcalc.functional import _sharded
from torchcalc.functional._common import Shard, no_shard, overridden, seed_tensor
from torchcalc.ops import dropout as ops
from torchcalc.ops._autograd import raise_as_torch
from torchcalc.reference.dropout import LANE_RANGE, dropout_scale

# What selu tends to at minus infinity: -scale * alpha of Klambauer et al.
_SATURATED_SELU = -1.7580993408473766


def dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
    shard: Shard | None = None,
) -> Tensor:
    r"""y_i = x_i / (1 - q) where element i is kept, else 0, with q = round(65536 p) / 65536.

    The mask is a pure function of (seed, i), i being the row-major index: the same on every device,
    for every dtype, memory layout and number of threads. It is not stored; backward draws it
    again. E[y] = x exactly, unless q is 1. Dropped elements are 0 even where x is NaN or infinite.

    Args:
        x: of any shape.
        p: probability of dropping an element, in [0, 1]; a multiple of 1/65536 after rounding.
        training: returns x itself unless True.
        inplace: y is written into x, and x returned. Autograd, vmap and torch.compile allow it
            where they allow ``x.copy_(y)``, which it is: it saves neither time nor memory.
        seed: an int, or an int64 tensor of one element on x's device; drawn with ``torch.randint``
            where it is None, so that ``torch.manual_seed`` governs it. Under vmap,
            randomness="same" shares the mask and "different" takes one seed a sample.
        shard: (shape, offset), where x is the block that begins at ``offset`` of a tensor of
            ``shape``: it gets that block's part of the whole tensor's mask. At most 8 dimensions;
            under vmap each sample is that block.

    Returns:
        Of x's shape, contiguous.

    Raises:
        TypeError, ValueError: as :func:`linear_act`.

    Source: Srivastava et al., "Dropout", JMLR 2014; Salmon et al., "Parallel random numbers: as
    easy as 1, 2, 3", SC11 (Philox4x32-10).
    """
    if has_torch_function_unary(x):
        return overridden(dropout, x, p, training, inplace, seed=seed, shard=shard)
    return _drop("dropout", x, p, training, inplace, seed, shard)


def dropout_add(
    x: Tensor,
    residual: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: Tensor | int | None = None,
    shard: Shard | None = None,
) -> Tensor:
    r"""y = residual + dropout(x), in one pass; nothing but the seed is kept for backward.

    Args:
        x, p, seed, shard: as for :func:`dropout`, whose mask it is.
        residual: of x's shape and dtype, on its device. Under torch.autocast one of another dtype
            is added as PyTorch would.
        training: residual + x unless True.

    Returns, raises: as :func:`dropout`.
    """
    op = "dropout_add"
    if has_torch_function_variadic(x, residual):
        return overridden(dropout_add, x, residual, p, training, seed=seed, shard=shard)
    if residual is None:
        check_floating(op, "residual", residual)
    if torch._C._is_any_autocast_enabled():
        tensors = isinstance(x, Tensor) and isinstance(residual, Tensor)
        if tensors and x.dtype != residual.dtype and autocast_dtype(x.device) is not None:
            check_shape(op, "residual", residual, tuple(x.shape), "x's")
            return residual + _drop(op, x, p, training, False, seed, shard)
    return _drop(op, x, p, training, False, seed, shard, residual)


def dropout1d(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
) -> Tensor:
    r"""y[n, c] = x[n, c] / (1 - q) where channel c of sample n is kept, else 0.

    The mask is ``dropout_mask((N, C), p, seed=seed)``: one draw for each channel of each sample,
    numbered row by row.

    Args:
        x: [N, C, L] or [C, L].
        p, training, inplace, seed: as for :func:`dropout`.

    Returns:
        Of x's shape, contiguous.

    Raises:
        TypeError, ValueError: as :func:`dropout`; x of other than 2 or 3 dimensions.

    Source: Tompson et al., "Efficient object localization using convolutional networks", 2015.
    """
    if has_torch_function_unary(x):
        return overridden(dropout1d, x, p, training, inplace, seed=seed)
    dims = _dimensions("dropout1d", x)
    if dims not in (2, 3):
        check_floating("dropout1d", "x", x)
        raise ValueError(f"dropout1d: x must be [N, C, L] or [C, L], got shape {tuple(x.shape)}")
    return _drop("dropout1d", x, p, training, inplace, seed, lead=dims - 1)


def dropout2d(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
) -> Tensor:
    r"""As :func:`dropout1d`, for x [N, C, H, W].

    As in PyTorch, x of three dimensions is [N, C, L] and not [C, H, W], with a warning, and other x
    is taken as [N, C, *], with a warning.
    """
    if has_torch_function_unary(x):
        return overridden(dropout2d, x, p, training, inplace, seed=seed)
    dims = _dimensions("dropout2d", x)
    if dims != 4:
        _warn_of("dropout2d", x, "[N, C, H, W]", "[N, C, *]")
    return _drop("dropout2d", x, p, training, inplace, seed, lead=2)


def dropout3d(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
) -> Tensor:
    r"""As :func:`dropout1d`, for x [N, C, D, H, W] or [C, D, H, W].

    As in PyTorch, x of other than 4 or 5 dimensions is taken as [C, *], with a warning.
    """
    if has_torch_function_unary(x):
        return overridden(dropout3d, x, p, training, inplace, seed=seed)
    dims = _dimensions("dropout3d", x)
    if dims not in (4, 5):
        _warn_of("dropout3d", x, "[N, C, D, H, W] or [C, D, H, W]", "[C, *]")
    return _drop("dropout3d", x, p, training, inplace, seed, lead=2 if dims == 5 else 1)


def alpha_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
) -> Tensor:
    r"""y_i = a x_i + b where element i is kept, else a s + b: for networks of selu units.

    s = -1.758... is where selu saturates; a = ((1 - q) (1 + q s^2))^(-1/2) and b = -a q s, with
    q = round(65536 p) / 65536, leave a mean of 0 and a variance of 1 exactly as they are, in
    expectation. The mask is that of :func:`dropout`; where q is 1, all of y is 0. Arguments, result
    and errors as there, but that ``training`` is False by default, as in PyTorch.

    Source: Klambauer et al., "Self-normalizing neural networks", 2017.
    """
    if has_torch_function_unary(x):
        return overridden(alpha_dropout, x, p, training, inplace, seed=seed)
    return _drop("alpha_dropout", x, p, training, inplace, seed, alpha=True)


def feature_alpha_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
) -> Tensor:
    r""":func:`alpha_dropout` of whole channels of x [N, C, *].

    The mask is ``dropout_mask((N, C), p, seed=seed)``.
    """
    if has_torch_function_unary(x):
        return overridden(feature_alpha_dropout, x, p, training, inplace, seed=seed)
    return _drop("feature_alpha_dropout", x, p, training, inplace, seed, lead=2, alpha=True)


def drop_path(
    x: Tensor, p: float, training: bool = True, *, seed: Tensor | int | None = None
) -> Tensor:
    r"""Stochastic depth: y[n] = x[n] / (1 - q) where sample n is kept, else 0.

    The mask is ``dropout_mask((N,), p, seed=seed)``: one draw for each element of the first
    dimension.

    Args:
        x: [N, *], a residual branch's output.
        p, training, seed: as for :func:`dropout`.

    Returns, raises: as :func:`dropout`.

    Source: Huang et al., "Deep networks with stochastic depth", 2016.
    """
    if has_torch_function_unary(x):
        return overridden(drop_path, x, p, training, seed=seed)
    return _drop("drop_path", x, p, training, False, seed, lead=1)


def _drop(
    op: str,
    x: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    seed: Tensor | int | None,
    shard: Shard | None = None,
    residual: Tensor | None = None,
    lead: int | None = None,
    alpha: bool = False,
) -> Tensor:
    """Every kind of dropout. There is a draw for each element of x's first ``lead`` dimensions."""
    threshold = dropout_threshold(op, "p", p)
    if type(x) is not Tensor and threshold and training and is_sharded(x):
        return _drop_shards(op, x, p, inplace, seed, shard, residual, lead, alpha)
    if not training or threshold == 0:
        _check.dropout(op, x, residual, None)
        if shard is not None:
            check_shard(op, shard, x.shape)
        return x if residual is None else residual + x
    try:
        drawn = seed_tensor(op, seed, x)
        block = None
        if shard is not None:  # of the draws
            if lead is not None:
                shard = (shard[0][:lead], shard[1][:lead])
            block = check_shard(op, shard, x.shape[:lead])
        shared = 1 if lead is None else _elements_of_a_draw(op, x, lead)
        scale, shift, fill = dropout_scale(threshold), 0.0, 0.0
        if alpha and threshold < LANE_RANGE:
            scale, shift, fill = _alpha_constants(threshold / LANE_RANGE)
        y: Tensor = ops.dropout(x, residual, drawn, threshold, 1, block, shared, scale, shift, fill)
    except Exception:
        _check.dropout(op, x, residual, seed if isinstance(seed, Tensor) else None)
        raise
    return x.copy_(y) if inplace else y


def _drop_shards(
    op: str,
    x: Tensor,
    p: float,
    inplace: bool,
    seed: Tensor | int | None,
    shard: Shard | None,
    residual: Tensor | None,
    lead: int | None,
    alpha: bool,
) -> Tensor:
    no_shard(op, shard)

    def call(x: Tensor, residual: Tensor | None, *, seed: Any, shard: Shard) -> Tensor:
        return _drop(op, x, p, True, False, seed, shard, residual, lead, alpha)

    _sharded.expect_all(op, residual=residual)
    if autocast_dtype(x.device) is None:
        _check.dropout(op, x, residual, None)
    y = _sharded.dropout(call, x, residual, _sharded.local_seed(op, seed, x, True))
    return x.copy_(y) if inplace else y


def _dimensions(op: str, x: Tensor) -> int:
    if not isinstance(x, Tensor):
        check_floating(op, "x", x)
    return x.dim()


def _elements_of_a_draw(op: str, x: Tensor, lead: int) -> int:
    if x.dim() < lead:
        raise ValueError(f"{op}: x must have {lead} or more dimensions, got shape {tuple(x.shape)}")
    return max(1, math.prod(x.shape[lead:]))


def _alpha_constants(q: float) -> tuple[float, float, float]:
    """Factor and summand of what is kept, and what stands for what is dropped."""
    s = _SATURATED_SELU
    a = 1 / math.sqrt((1 - q) * (1 + q * s * s))
    b = -a * q * s
    return a, b, a * s + b


def _warn_of(op: str, x: Tensor, expected: str, taken: str) -> None:
    check_floating(op, "x", x)
    warnings.warn(
        f"{op}: x should be {expected}, got shape {tuple(x.shape)}, which is taken as {taken}",
        stacklevel=3,
    )


def dropout_mask(
    shape: int | Sequence[int],
    p: float = 0.5,
    *,
    seed: Tensor | int | None = None,
    device: torch.device | str | None = None,
    packed: bool = False,
    shard: Shard | None = None,
) -> Tensor:
    r"""mask_i = True where :func:`dropout` with the same p and seed keeps element i.

    Args:
        shape: of the result.
        p: probability of dropping an element, in [0, 1].
        seed: as for :func:`dropout`.
        device: of the result; the seed's where it is None and seed is a tensor, else the default.
        packed: one bit an element of the flattened mask of n, the lowest of a byte first, as
            ``numpy.packbits(mask, bitorder="little")`` gives; the last byte is filled up with 0.
        shard: as for :func:`dropout`, the mask being x.

    Returns:
        Bool [*shape], True = kept; or packed, uint8 [ceil(n / 8)].

    Raises:
        TypeError, ValueError: as :func:`linear_act`.
    """
    op = "dropout_mask"
    size = check_size(op, shape)
    check_flag(op, "packed", packed)
    threshold = dropout_threshold(op, "p", p)
    block = None if shard is None else check_shard(op, shard, size)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else None
    drawn = seed_tensor(op, seed, torch.empty(0, device=device))
    check_seed(op, drawn, torch.empty(0, device=device).device)
    if threshold == 0:
        return _all_kept(size, drawn.device, packed)
    try:
        mask: Tensor = ops.dropout_mask(size, drawn, threshold, 1, block, packed)
    except RuntimeError as error:
        raise_as_torch(error, (drawn,))
        raise
    return mask


def _all_kept(size: Sequence[int], device: torch.device, packed: bool) -> Tensor:
    if not packed:
        return torch.ones(size, dtype=torch.bool, device=device)
    n = math.prod(size)
    mask = torch.full(((n + 7) // 8,), 255, dtype=torch.uint8, device=device)
    mask[-1:] >>= -n % 8
    return mask
