"""A shard of a tensor gets its part of the whole tensor's mask, whatever its place and shape."""

from __future__ import annotations

import itertools
import math

import numpy as np
import philox_numpy
import pytest
import torch

from torchcalc import functional as F

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

SEED, P = 11, 0.4


def whole_mask(shape, seed=SEED):
    mask = philox_numpy.dropout_mask(math.prod(shape), seed, round(65536 * P))
    return torch.from_numpy(mask.reshape(shape))


def cut(offset, size):
    return tuple(slice(first, first + n) for first, n in zip(offset, size, strict=True))


@st.composite
def blocks(draw):
    """A shape of 1 to 4 dimensions, an offset and a size."""
    sizes = st.integers(1, 5), st.integers(1, 40)  # the last dimension is longer than a group
    shape = [draw(sizes[0]) for _ in range(draw(st.integers(0, 3)))] + [draw(sizes[1])]
    offset = [draw(st.integers(0, n)) for n in shape]
    size = [draw(st.integers(0, n - first)) for n, first in zip(shape, offset, strict=True)]
    return shape, offset, size


@given(blocks())
@settings(max_examples=150, deadline=None)
def test_any_block(block):
    shape, offset, size = block
    shard = (shape, offset)
    kept = whole_mask(shape)[cut(offset, size)]
    assert torch.equal(F.dropout_mask(size, P, seed=SEED, shard=shard), kept)
    packed = F.dropout_mask(size, P, seed=SEED, shard=shard, packed=True)
    assert (packed.numpy() == np.packbits(kept.numpy(), bitorder="little")).all()
    x = torch.ones(size, requires_grad=True)
    y = F.dropout(x, P, seed=SEED, shard=shard)
    assert torch.equal(y != 0, kept)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)
    added = F.dropout_add(x, torch.full(size, 2.0), P, seed=SEED, shard=shard)
    assert torch.equal(added, 2 + y)
    z = torch.ones(*size[:-1], 1, requires_grad=True)
    y = F.linear_act(z, torch.ones(size[-1], 1), dropout_p=P, seed=SEED, shard=shard)
    assert torch.equal(y != 0, kept)
    (grad,) = torch.autograd.grad((y != 0).float().mul(y).sum(), z)
    slope = torch.func.grad(torch.nn.functional.gelu)(torch.tensor(1.0))
    scale = 65536 / (65536 - round(65536 * P))
    torch.testing.assert_close(grad[..., 0], kept.sum(-1) * slope * scale)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_pieces_make_the_whole(data):
    dims = data.draw(st.integers(1, 4))
    shape = [data.draw(st.integers(1, 20 if k == dims - 1 else 5)) for k in range(dims)]
    cuts = []  # of each dimension, where its pieces begin and end
    for n in shape:
        inner = data.draw(st.lists(st.integers(0, n), max_size=2))
        cuts.append(list(itertools.pairwise([0, *sorted(inner), n])))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = F.dropout(x, P, seed=SEED)
    c = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, x, c)
    y, grad = torch.empty_like(x), torch.empty_like(x)
    for piece in itertools.product(*cuts):
        place = tuple(slice(*ends) for ends in piece)
        part = x.detach()[place].requires_grad_()
        out = F.dropout(part, P, seed=SEED, shard=(shape, [first for first, _ in piece]))
        y.detach()[place] = out.detach()
        grad[place] = torch.autograd.grad(out, part, c[place])[0]
    assert torch.equal(y, expected)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "tanh"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_shards_of_a_layer(activation, residual, dim, device):
    # Rows of x, and rows of the weight, in uneven pieces.
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, device=device) for s in ((3, 5, 4), (11, 4), (11,))
    )
    added = torch.randn(3, 5, 11, dtype=torch.float64, device=device) if residual else None
    options = {"activation": activation, "dropout_p": P, "seed": SEED}

    def gradients(x, weight, bias, added, **more):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y = F.linear_act(*leaves, residual=added, **options, **more)
        return y, torch.autograd.grad(y.square().sum(), leaves)

    whole, whole_grads = gradients(x, weight, bias, added)
    n = whole.shape[dim]
    outputs, grads = [], []
    for first, last in ((0, n // 3), (n // 3, n)):
        place = [slice(None)] * 3
        place[dim] = slice(first, last)
        columns = place[2]
        offset = [0, 0, 0]
        offset[dim] = first
        y, g = gradients(
            x[tuple(place[:2])],
            weight[columns],
            bias[columns],
            None if added is None else added[tuple(place)],
            shard=(whole.shape, offset),
        )
        outputs.append(y)
        grads.append(g)
    torch.testing.assert_close(torch.cat(outputs, dim), whole)
    # A gradient is of the pieces side by side where they have their own operand, else their sum.
    own = (dim, None, None) if dim < 2 else (None, 0, 0)
    for parts, expected, along in zip(zip(*grads, strict=True), whole_grads, own, strict=True):
        joined = sum(parts) if along is None else torch.cat(parts, along)
        torch.testing.assert_close(joined, expected)


def test_transforms(device):
    x = torch.randn(3, 4, 5, device=device)
    shard = ((9, 7), (2, 1))

    def call(x, seed):
        return F.dropout(x, P, seed=seed, shard=shard)

    # A sample is the block.
    for seeds, dim in ((torch.arange(3, device=device)[:, None], 0), (SEED, None)):
        y = torch.vmap(call, in_dims=(0, dim))(x, seeds)
        for k in range(3):
            seed = k if dim == 0 else SEED
            kept = whole_mask((9, 7), seed)[2:6, 1:6].to(device)
            assert torch.equal(y[k] != 0, kept)
            masks = F.dropout_mask((4, 5), P, seed=seed, shard=shard, device=device)
            assert torch.equal(masks, kept)


@pytest.mark.parametrize("dynamic", [None, True])
def test_offsets_may_be_symbols(dynamic, device):
    # As where a shard's place follows from its size.
    def call(x, w):
        n, m = x.shape
        shard = ((2 * n, m), (n, 0))
        mask = F.dropout_mask((n, m), P, seed=SEED, shard=shard, device=x.device)
        dropped = F.dropout_add(x, x, P, seed=SEED, shard=shard)
        layer = F.linear_act(x, w, dropout_p=P, seed=SEED, shard=((2 * n, 7), (n, 0)))
        return mask, dropped, layer

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (4, 6, 9):
        args = torch.randn(n, 3, device=device), torch.randn(7, 3, device=device)
        for a, b in zip(compiled(*args), call(*args), strict=True):
            torch.testing.assert_close(a, b)


def test_one_element_and_none():
    one = torch.ones(())
    assert torch.equal(F.dropout(one, P, seed=2, shard=((), ())), F.dropout(one, P, seed=2))
    assert F.dropout(torch.ones(0, 3), P, shard=((4, 3), (4, 0))).shape == (0, 3)
    large = ((2**31, 2**31), (2**31 - 1, 2**31 - 9))
    expected = philox_numpy.dropout_mask(9, SEED, round(65536 * P), first=2**62 - 9)
    actual = F.dropout_mask((1, 9), P, seed=SEED, shard=large)
    assert torch.equal(actual[0], torch.from_numpy(expected))
    # numpy's integers, and dimensions that need not be told apart
    shard = ((np.int64(5), 1, 1, 1, 1, 1, 1, 3), torch.Size((1,) + 7 * (0,)))
    x = torch.ones(2, 1, 1, 1, 1, 1, 1, 3)
    assert torch.equal(
        F.dropout(x, P, seed=SEED, shard=shard).view(2, 3) != 0, whole_mask((5, 3))[1:3]
    )
