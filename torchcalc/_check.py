"""Validation of what users pass: errors name the argument, what it was and what is accepted.

The kernels are the gate: they refuse what would be wrong. What is wrong with a call that they have
refused, and with one that is only traced, is found and said here.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchcalc.reference.dropout import LANE_RANGE

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
MAX_SEED = 2**63 - 1
MAX_BLOCK_DIMS = 8  # csrc/math/mask.h


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    return repr(value)


def is_sharded(x: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # which takes long to import
    return module is not None and isinstance(x, module.DTensor)


def check_floating(op: str, name: str, t: Any, like: Tensor | None = None) -> None:
    """A dense tensor of a supported dtype; with ``like``, of its dtype and on its device."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    if t.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float32, float64, bfloat16 or float16, got {t.dtype}"
        )
    if t.layout != torch.strided or t.is_nested:
        found = "a nested tensor" if t.is_nested else t.layout
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got {found}")
    if like is not None and is_sharded(t) and not is_sharded(like):
        raise TypeError(f"{op}: {name} is a DTensor, and the first argument is not")
    if like is not None and t.dtype != like.dtype:
        raise TypeError(
            f"{op}: {name} must have the dtype of the first argument, {like.dtype}, got {t.dtype}"
        )
    if like is not None and t.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on the device of the first argument, {like.device}, "
            f"got {t.device}"
        )


def check_shape(op: str, name: str, t: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if t.shape != shape:
        raise ValueError(
            f"{op}: {name} must have shape {tuple(shape)} ({meaning}), got {tuple(t.shape)}"
        )


def _are_sizes(sizes: Sequence[Any]) -> bool:
    return all(
        type(n) is int
        or (isinstance(n, int | torch.SymInt | numbers.Integral) and not isinstance(n, bool))
        for n in sizes
    )


def check_features(op: str, name: str, n: Any) -> None:
    """A number of features."""
    if not _are_sizes((n,)):
        raise TypeError(f"{op}: {name} must be an int, got {describe(n)}")
    if n < 0:
        raise ValueError(f"{op}: {name} must be at least 0, got {n}")


def check_flag(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {describe(value)}")


def check_size(op: str, shape: Any) -> tuple[int, ...]:
    """A shape, given as one size or as a sequence of them."""
    sizes = shape if isinstance(shape, Sequence) else (shape,)
    if not _are_sizes(sizes):
        raise TypeError(f"{op}: shape must be a size or a sequence of sizes, got {shape!r}")
    if any(isinstance(n, torch.SymInt) for n in sizes) or torch.compiler.is_dynamo_compiling():
        return tuple(sizes)  # sizes of other tensors, mostly: not to be made constants
    if not all(n >= 0 for n in sizes) or math.prod(sizes) > MAX_SEED:
        raise ValueError(f"{op}: shape must be sizes >= 0 of less than 2^63, got {shape!r}")
    return tuple(map(int, sizes))


def check_shard(op: str, shard: Any, size: Sequence[int]) -> list[int] | None:
    """The block [*shape, *offset, *size] of ``size`` that shard = (shape, offset) tells.

    None where the tensor has no dimensions, and so is the whole.
    """
    if (
        not isinstance(shard, Sequence)
        or len(shard) != 2
        or not all(isinstance(part, Sequence) and _are_sizes(part) for part in shard)
    ):
        raise TypeError(
            f"{op}: shard must be (shape, offset), two sequences of ints, got {shard!r}"
        )
    shape, offset = shard
    if not len(shape) == len(offset) == len(size):
        raise ValueError(
            f"{op}: shard must be a shape and an offset of {len(size)} dimensions, as the tensor "
            f"of shape {tuple(size)}, got {shard!r}"
        )
    if len(size) > MAX_BLOCK_DIMS:
        raise ValueError(
            f"{op}: shard must have at most {MAX_BLOCK_DIMS} dimensions, got {len(size)}"
        )
    if math.prod(shape) > MAX_SEED:
        raise ValueError(f"{op}: shard must be of a shape of less than 2^63, got {shard!r}")
    for whole, first, part in zip(shape, offset, size, strict=True):
        if first < 0 or first + part > whole:
            raise ValueError(
                f"{op}: shard must hold the tensor: one of shape {tuple(size)} at offset "
                f"{tuple(offset)} is not within {tuple(shape)}"
            )
    return [*shape, *offset, *size] or None


def dropout_threshold(op: str, name: str, p: Any) -> int:
    """round(65536 p): the mask keeps lanes from here on (csrc/math/philox.h)."""
    if type(p) is not float and (not isinstance(p, numbers.Real) or isinstance(p, bool)):
        raise TypeError(f"{op}: {name} must be a number in [0, 1], got {describe(p)}")
    if not 0 <= float(p) <= 1:
        raise ValueError(f"{op}: {name} must be in [0, 1], got {p}")
    return round(LANE_RANGE * float(p))


def check_seed(op: str, seed: Any, device: torch.device) -> None:
    """One int64 element on ``device``."""
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64:
        raise TypeError(f"{op}: seed must be an int or an int64 tensor, got {describe(seed)}")
    if seed.numel() != 1:
        raise ValueError(f"{op}: seed must have one element, got {describe(seed)}")
    if seed.device != device:
        raise ValueError(f"{op}: seed must be on {device}, got {describe(seed)}")


def int_seed(op: str, seed: Any) -> int:
    """A seed that is no tensor: a Python or numpy integer that fits in int64."""
    if not isinstance(seed, (int, numbers.Integral)) or isinstance(seed, bool):
        raise TypeError(f"{op}: seed must be an int or an int64 tensor, got {describe(seed)}")
    value = int(seed)
    if not -MAX_SEED - 1 <= value <= MAX_SEED:
        raise ValueError(f"{op}: seed must fit in int64, got {seed}")
    return value


def dropout(op: str, x: Any, residual: Any, seed: Any) -> None:
    """The tensors of an op that drops elements of x; seed is None where it is not yet known."""
    check_floating(op, "x", x)
    if residual is not None:
        check_floating(op, "residual", residual, like=x)
        check_shape(op, "residual", residual, x.shape, "x's")
    if seed is not None:
        check_seed(op, seed, x.device)


def linear(
    op: str, x: Any, weight: Any, bias: Any, weight_name: str = "weight", bias_name: str = "bias"
) -> tuple[int, ...]:
    """The tensors of a linear layer; returns its output's shape."""
    check_floating(op, "x", x)
    check_floating(op, weight_name, weight, like=x)
    if weight.dim() != 2:
        raise ValueError(
            f"{op}: {weight_name} must be [out_features, in_features], "
            f"got shape {tuple(weight.shape)}"
        )
    out_features, in_features = weight.shape
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{op}: x must have shape [*, {in_features}], got {tuple(x.shape)}")
    if bias is not None:
        check_floating(op, bias_name, bias, like=x)
        check_shape(op, bias_name, bias, (out_features,), "out_features")
    return (*x.shape[:-1], out_features)


def linear_act(x: Any, weight: Any, bias: Any, residual: Any, seed: Any) -> None:
    """The tensors of linear_act."""
    op = "linear_act"
    shape = linear(op, x, weight, bias)
    if residual is not None:
        check_floating(op, "residual", residual, like=x)
        check_shape(op, "residual", residual, shape, "the output's")
    if seed is not None:
        check_seed(op, seed, x.device)


def mlp(
    x: Any,
    weight1: Any,
    bias1: Any,
    weight2: Any,
    bias2: Any,
    residual: Any,
    hidden_seed: Any = None,
    seed: Any = None,
    *,
    gated: bool = False,
) -> None:
    """The tensors of mlp."""
    op = "mlp"
    check_flag(op, "gated", gated)
    *lead, hidden = linear(op, x, weight1, bias1, "weight1", "bias1")
    if gated:
        if hidden % 2:
            raise ValueError(
                f"{op}: weight1 of a gated layer must have an even number of rows, "
                f"got shape {tuple(weight1.shape)}"
            )
        hidden //= 2
    check_floating(op, "weight2", weight2, like=x)
    if weight2.dim() != 2 or weight2.shape[1] != hidden:
        raise ValueError(
            f"{op}: weight2 must be [out_features, {hidden}], got shape {tuple(weight2.shape)}"
        )
    if bias2 is not None:
        check_floating(op, "bias2", bias2, like=x)
        check_shape(op, "bias2", bias2, (weight2.shape[0],), "out_features")
    if residual is not None:
        check_floating(op, "residual", residual, like=x)
        check_shape(op, "residual", residual, (*lead, weight2.shape[0]), "the output's")
    for given in (hidden_seed, seed):
        if given is not None:
            check_seed(op, given, x.device)


def gated_linear(
    x: Any, weight: Any, weight_value: Any, bias: Any, bias_value: Any, seed: Any
) -> None:
    """The tensors of gated_linear: weights and biases as one tensor, or as a pair."""
    op = "gated_linear"
    check_floating(op, "x", x)
    is_pair = weight_value is not None
    name = "weight[0]" if is_pair else "weight"
    check_floating(op, name, weight, like=x)
    if weight.dim() != 2 or not (is_pair or weight.shape[0] % 2 == 0):
        rows = "out_features" if is_pair else "2 out_features"
        raise ValueError(
            f"{op}: {name} must be [{rows}, in_features], got shape {tuple(weight.shape)}"
        )
    if is_pair:
        check_floating(op, "weight[1]", weight_value, like=x)
        check_shape(op, "weight[1]", weight_value, tuple(weight.shape), "weight[0]'s")
    rows, in_features = weight.shape
    out_features = rows if is_pair else rows // 2
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{op}: x must have shape [*, {in_features}], got {tuple(x.shape)}")
    if bias_value is not None:
        for name, t in (("bias[0]", bias), ("bias[1]", bias_value)):
            check_floating(op, name, t, like=x)
            check_shape(op, name, t, (out_features,), "out_features")
    elif bias is not None:
        check_floating(op, "bias", bias, like=x)
        check_shape(op, "bias", bias, (2 * out_features,), "2 out_features")
    if seed is not None:
        check_seed(op, seed, x.device)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What torch.autocast casts to on this device at the moment, if it does."""
    if not torch._C._is_any_autocast_enabled():  # Dynamo of torch 2.10 cannot trace what follows
        return None
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def check_number(op: str, name: str, value: Any) -> float:
    """A strength of a penalty: a number >= 0 and not NaN."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number >= 0, got {describe(value)}")
    if not float(value) >= 0:
        raise ValueError(f"{op}: {name} must be >= 0, got {value}")
    return float(value)


def check_finite(op: str, name: str, value: Any) -> float:
    """A strength of a penalty that an optimizer applies: 0 times infinity must not arise."""
    number = check_number(op, name, value)
    if number == math.inf:  # also where Dynamo traces
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return number


def check_strength(op: str, name: str, lam: Any, x: Tensor) -> tuple[Tensor | None, float]:
    """A strength as (tensor of one element or of x's shape, 0) or as (None, number)."""
    if not isinstance(lam, Tensor):
        if not isinstance(lam, numbers.Real) or isinstance(lam, bool):
            raise TypeError(f"{op}: {name} must be a number or a Tensor, got {describe(lam)}")
        return None, check_number(op, name, lam)
    if lam.is_floating_point() and autocast_dtype(x.device) is not None:
        lam = lam.to(x.dtype)
    exact = lam.numel() == 1 and lam.dtype == torch.float32 and x.dtype in HALF
    check_floating(op, name, lam, like=x.new_empty(0, dtype=lam.dtype) if exact else x)
    if lam.numel() == 1:
        return lam.reshape(()), 0.0
    try:
        return lam.broadcast_to(x.shape), 0.0
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} must broadcast to the shape of x, {tuple(x.shape)}, "
            f"got {tuple(lam.shape)}"
        ) from None
