"""Rows of dropout of every kind and its mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.reference import dropout as reference_op
from torchcalc.testing._rows import LANE_RANGE, MODES, SEED, SHAPES, Call, Op, Random, Sample

SHARD = ((6, 9), (2, 1))  # where [3, 7] lies in something larger


def _seeded(reference: Callable[..., Tensor], p: float, *options: Any) -> Call:
    def call(x: Tensor) -> Tensor:
        seed = torch.tensor([SEED], device=x.device)
        return reference(x, seed, round(LANE_RANGE * p), *options)

    return call


def _of_whole(t: Tensor) -> Tensor:
    """The part of a tensor that ``SHARD`` tells."""
    return t[2:5, 1:8]


def _plain(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    return reference_op.dropout(x, None, seed, threshold)


def _part(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    kept = _of_whole(reference_op.dropout_mask(SHARD[0], seed, threshold))
    return torch.where(kept, x * reference_op.dropout_scale(threshold), torch.zeros_like(x))


def _dropout(name: str, x: Tensor, p: float) -> Sample:
    return Sample(name, (x,), lambda x: functional.dropout(x, p, seed=SEED), _seeded(_plain, p))


def _dropout_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for p in (0.1, 0.5, 1.0):
        yield _dropout(f"p={p}", t(3, 7), p)

    def call(x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, seed=SEED, shard=SHARD)

    yield Sample("shard", (t(3, 7),), call, _seeded(_part, 0.5))


def _dropout_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for shape in SHAPES:
        yield _dropout(f"{shape}", t(*shape), 0.3)


def _dropout_add(name: str, x: Tensor, residual: Tensor, p: float) -> Sample:
    def call(x: Tensor, residual: Tensor) -> Tensor:
        return functional.dropout_add(x, residual, p, seed=SEED)

    def reference(x: Tensor, residual: Tensor) -> Tensor:
        return residual + _seeded(_plain, p)(x)

    return Sample(name, (x, residual), call, reference)


def _add_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for p in (0.1, 0.5, 1.0):
        yield _dropout_add(f"p={p}", t(3, 7), t(3, 7), p)

    def call(x: Tensor, residual: Tensor) -> Tensor:
        return functional.dropout_add(x, residual, 0.5, seed=SEED, shard=SHARD)

    def reference(x: Tensor, residual: Tensor) -> Tensor:
        return residual + _seeded(_part, 0.5)(x)

    yield Sample("shard", (t(3, 7), t(3, 7)), call, reference)


def _add_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for shape in SHAPES:
        yield _dropout_add(f"{shape}", t(*shape), t(*shape), 0.3)


def _kind(
    name: str,
    reference: Callable[..., Tensor],
    shapes: tuple[tuple[int, ...], ...],
    dims: Callable[[int], int | None],
) -> Op:
    """A row of a kind of dropout that draws for the first ``dims(x.dim())`` dimensions of x.

    The first of the shapes is that of its samples.
    """
    function = getattr(functional, name)

    def sample(label: str, x: Tensor, p: float) -> Sample:
        def call(x: Tensor) -> Tensor:
            result: Tensor = function(x, p, True, seed=SEED)
            return result

        return Sample(label, (x,), call, _seeded(reference, p, dims(x.dim())))

    def small(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for p in (0.3, 1.0):
            yield sample(f"p={p}", t(*shapes[0]), p)

    def odd(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for shape in shapes:
            yield sample(f"{shape}", t(*shape), 0.3)

    return Op(name, small, odd)


def _mask(
    name: str,
    shape: tuple[int, ...],
    p: float,
    device: torch.device,
    packed: bool = False,
    shard: Any = None,
) -> Sample:
    def call() -> Tensor:
        return functional.dropout_mask(
            shape, p, seed=SEED, device=device, packed=packed, shard=shard
        )

    def reference() -> Tensor:
        seed = torch.tensor([SEED], device=device)
        mask = reference_op.dropout_mask(shard[0] if shard else shape, seed, round(LANE_RANGE * p))
        mask = _of_whole(mask) if shard else mask
        return _packed(mask) if packed else mask

    return Sample(name, (), call, reference)


def _packed(mask: Tensor) -> Tensor:
    """A bit for each element, the lowest of a byte first."""
    bits = mask.new_zeros((mask.numel() + 7) // 8 * 8, dtype=torch.int32)
    bits[: mask.numel()] = mask.flatten()
    powers = 2 ** torch.arange(8, dtype=torch.int32, device=mask.device)
    return (bits.view(-1, 8) * powers).sum(1).to(torch.uint8)


def _mask_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for p in (0.0, 0.1, 0.5, 1.0):
        yield _mask(f"p={p}", (3, 7), p, device)
        yield _mask(f"p={p}, packed", (3, 7), p, device, packed=True)
    yield _mask("shard", (3, 7), 0.5, device, shard=SHARD)
    yield _mask("shard, packed", (3, 7), 0.5, device, packed=True, shard=SHARD)


def _mask_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in SHAPES:
        yield _mask(f"{shape}", shape, 0.3, device)
        yield _mask(f"{shape}, packed", shape, 0.3, device, packed=True)


OPS = [
    Op("dropout", _dropout_samples, _dropout_shapes),
    Op("dropout_add", _add_samples, _add_shapes),
    _kind(
        "dropout1d",
        reference_op.dropout_whole,
        ((2, 3, 5), (5, 7), (1, 1, 1), (0, 3, 4), (3, 0, 4), (3, 4, 0), (3, 5, 1031), (1031, 9)),
        lambda dim: dim - 1,
    ),
    _kind(
        "dropout2d",
        reference_op.dropout_whole,
        ((2, 3, 2, 2), (1, 1, 1, 1), (5, 3, 1, 7), (2, 3, 0, 4), (7, 11, 33, 17)),
        lambda dim: 2,
    ),
    _kind(
        "dropout3d",
        reference_op.dropout_whole,
        ((2, 3, 1, 2, 2), (3, 2, 2, 2), (1, 1, 1, 1, 1), (2, 0, 1, 2, 2), (5, 3, 7, 11, 13)),
        lambda dim: 2 if dim == 5 else 1,
    ),
    _kind("alpha_dropout", reference_op.alpha_dropout, ((3, 7), *SHAPES), lambda dim: None),
    _kind(
        "feature_alpha_dropout",
        reference_op.alpha_dropout,
        ((2, 3, 4), (5, 7), (1, 1, 1), (2, 3, 0), (5, 3, 7, 1, 13), (31, 5, 1031)),
        lambda dim: 2,
    ),
    _kind(
        "drop_path",
        reference_op.dropout_whole,
        ((3, 4), (7,), (1,), (0, 3), (3, 0), (5, 3, 7, 13), (8, 5003)),
        lambda dim: 1,
    ),
    Op(
        "dropout_mask",
        _mask_samples,
        _mask_shapes,
        skip=dict.fromkeys(MODES, "the mask is bool and has no tensor input but the seed"),
    ),
]
