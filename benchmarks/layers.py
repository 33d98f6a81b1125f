"""Layers as PyTorch has them, their sizes, and how training one is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Config, Row, Run, dtype_name
from torchcalc.ops.activations import NAMES

P = 0.1
Layer = Callable[..., Tensor]
Shape = tuple[int, ...]  # rows, in features, and the out features of each layer

LARGE, BANDWIDTH, SMALL = (4096, 1024, 4096), (1, 4096, 4096), (8, 16, 16)
SHAPES = (LARGE, (512, 256, 1024), (64, 784, 256), BANDWIDTH, (8192, 64, 64), SMALL)
# Where bfloat16 is emulated its GEMM is all that counts: two shapes will do.
HALF_SHAPES = ((512, 256, 1024), (64, 784, 256))
BEATS_EAGER = 1.0
# The time of reading and writing the weight is all there is; and a small call's is overhead.
BANDWIDTH_MUST, SMALL_MUST, SMALL_MUST_PLAIN = 1.03, 0.85, 1.5

_OTHERS: dict[str, Layer] = {
    "identity": lambda z: z,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "relu_squared": lambda z: F.relu(z).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
ACTIVATIONS = {name: _OTHERS.get(name) or getattr(F, name) for name in NAMES}


def eager_linear_act(activation: str, p: float) -> Layer:
    f = ACTIVATIONS[activation]
    if not p:
        return lambda x, weight, bias: f(F.linear(x, weight, bias))
    return lambda x, weight, bias: F.dropout(f(F.linear(x, weight, bias)), p)


def must(shape: Shape, p: float = P) -> float:
    """The bound on forward and backward of a shape, to eager."""
    if shape[:3] == SMALL:
        return SMALL_MUST if p else SMALL_MUST_PLAIN
    return BANDWIDTH_MUST if shape[:3] == BANDWIDTH else BEATS_EAGER


def rounds(shape: Shape) -> int | None:
    """Those with the largest GEMMs take long."""
    return 7 if math.prod(shape[:3]) > 2**32 else None


def sizes(config: Config, shape: Shape, quick: int = 32) -> Shape:
    """The shape, or where that will do, a small one."""
    return tuple(min(n, quick) for n in shape) if config.quick else shape


def inputs(config: Config, dtype: torch.dtype, rows: int, *features: int) -> list[Tensor]:
    """x, then each layer's weight, scaled as nn.Linear's, and bias."""
    tensors = [config.tensor(rows, features[0], dtype=dtype)]
    for k, n in pairwise(features):
        tensors += [config.tensor(n, k, dtype=dtype) / k**0.5, config.tensor(n, dtype=dtype)]
    return [t.requires_grad_() for t in tensors]


def step(layer: Layer, operands: Sequence[Tensor], leaves: Sequence[Tensor] | None = None) -> Run:
    """Forward and backward as in a training loop: gradients reach ``.grad`` of the leaves.

    ``torch.autograd.grad`` would leave out how they get there.
    """
    leaves = operands if leaves is None else leaves
    grad = torch.ones_like(layer(*operands).detach())

    def run() -> None:
        layer(*operands).backward(grad)
        for leaf in leaves:
            leaf.grad = None

    return run


def sizes_name(shape: Shape) -> str:
    """(8, 16, 32) -> 8 x 16 -> 32."""
    rows, *features = shape
    return f"{rows} x " + " -> ".join(map(str, features))


def compare(
    config: Config,
    name: str,
    shape: Shape,
    dtype: torch.dtype,
    layers: Mapping[str, Layer],
    operands: Sequence[Tensor],
    *,
    must: float,
    baseline: str = "eager",
    rounds: int | None = None,
) -> Row:
    """Forward and backward of layers of the same operands; SMALL ones as calls, in one thread."""
    small = shape[:3] == SMALL
    return config.compare(
        name,
        sizes_name(shape),
        dtype_name(dtype),
        {contender: step(layer, operands) for contender, layer in layers.items()},
        baseline=baseline,
        bound=config.bound(must),
        one_thread=small,
        calls=small,
        rounds=rounds,
    )
