"""Dropout of every kind: which elements go together, what stands for them, and torch.nn's ways."""

from __future__ import annotations

import math

import numpy as np
import philox_numpy
import pytest
import torch

from torchcalc import functional as F

SEED, P = 5, 0.3
THRESHOLD = round(65536 * P)
Q = THRESHOLD / 65536


def _add_to_zeros(x, *args, **options):
    return F.dropout_add(x, torch.zeros_like(x), *args, **options)


# Of each kind: a function, the shape of an x, and that of its mask: x's first dimensions.
KINDS = {
    "dropout": (F.dropout, (33, 7), (33, 7)),
    "dropout_add": (_add_to_zeros, (33, 7), (33, 7)),
    "dropout1d": (F.dropout1d, (5, 7, 11), (5, 7)),
    "dropout1d, no batch": (F.dropout1d, (37, 11), (37,)),
    "dropout2d": (F.dropout2d, (5, 7, 3, 5), (5, 7)),
    "dropout3d": (F.dropout3d, (5, 7, 3, 1, 2), (5, 7)),
    "dropout3d, no batch": (F.dropout3d, (37, 3, 1, 2), (37,)),
    "alpha_dropout": (F.alpha_dropout, (33, 7), (33, 7)),
    "feature_alpha_dropout": (F.feature_alpha_dropout, (5, 7, 3, 5), (5, 7)),
    "drop_path": (F.drop_path, (37, 3, 5), (37,)),
}

kinds = pytest.mark.parametrize(("call", "shape", "drawn"), KINDS.values(), ids=list(KINDS))


def numpy_mask(shape, threshold=THRESHOLD, seed=SEED):
    mask = philox_numpy.dropout_mask(math.prod(shape), seed, threshold)
    return torch.from_numpy(mask.reshape(shape))


def of_whole(mask, shape):
    """A mask of the first dimensions, for all elements."""
    return mask.reshape(*mask.shape, *[1] * (len(shape) - mask.dim())).expand(shape)


@kinds
def test_masks_are_those_that_the_documentation_tells(call, shape, drawn, device):
    x = (torch.rand(shape, dtype=torch.float64, device=device) + 1).requires_grad_()
    kept = of_whole(numpy_mask(drawn), shape).to(device)
    y = call(x, P, True, seed=SEED)
    zero, one = (call(torch.full_like(x, value), P, True, seed=SEED) for value in (0.0, 1.0))
    scale = (one - zero)[kept].unique()
    assert (one - zero)[~kept].eq(0).all()
    torch.testing.assert_close(y[kept], zero[kept] + scale[-1] * x[kept])
    assert y[~kept].unique().numel() == 1
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, kept * scale[-1])
    mask = F.dropout_mask(drawn, P, seed=SEED, device=device)
    assert torch.equal(of_whole(mask, shape), kept)


@pytest.mark.parametrize("p", [0.0, P, 1.0])
@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (8,), (0,), (3, 0), (3, 5), (5, 13, 11), (4099,)]
)
def test_packed_masks_are_those_of_packbits(shape, p, device):
    mask = numpy_mask(shape, round(65536 * p)).numpy()
    packed = F.dropout_mask(shape, p, seed=SEED, device=device, packed=True)
    expected = np.packbits(mask, bitorder="little")
    assert packed.dtype == torch.uint8
    assert packed.shape == expected.shape == (math.ceil(mask.size / 8),)
    assert (packed.cpu().numpy() == expected).all()
    seeds = torch.arange(3, device=device)[:, None]
    each = torch.vmap(lambda s: F.dropout_mask(shape, p, seed=s, packed=True))(seeds)
    for row, seed in zip(each.cpu().numpy(), range(3), strict=True):
        mask = numpy_mask(shape, round(65536 * p), seed).numpy()
        assert (row == np.packbits(mask, bitorder="little")).all()


@kinds
def test_dropped_elements_are_constants_where_x_is_not_finite(call, shape, drawn, device):
    values = torch.tensor([float("nan"), float("inf"), -float("inf")], device=device)
    x = values.repeat(math.prod(shape) // 3 + 1)[: math.prod(shape)].view(shape).requires_grad_()
    dropped = ~of_whole(numpy_mask(drawn), shape).to(device)
    y = call(x, P, True, seed=SEED)
    assert y[dropped].isfinite().all()
    assert not y[~dropped].isfinite().any()
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, float("inf")))
    assert (grad[dropped] == 0).all()
    assert (call(x, 1.0, True) == 0).all()


@pytest.mark.parametrize("p", [1 / 65536, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("function", [F.alpha_dropout, F.feature_alpha_dropout])
def test_alpha_dropout_keeps_mean_and_variance(function, p):
    q = round(65536 * p) / 65536
    values = [
        function(torch.full((512, 1024), v, dtype=torch.float64), p, True, seed=1) for v in (0, 1)
    ]
    kept = (values[1] != values[0]).flatten().nonzero()[0]
    dropped = (values[1] == values[0]).flatten().nonzero()[0]
    b, c = (v.flatten()[kept].item() for v in values)
    a, low = c - b, values[0].flatten()[dropped].item()
    # In expectation over the mask, of an x of mean 0 and variance 1.
    assert (1 - q) * b + q * low == pytest.approx(0, abs=1e-12)
    assert (1 - q) * (a * a + b * b) + q * low * low == pytest.approx(1, abs=1e-11)
    # Dropped is where selu saturates, but for a and b.
    saturated = torch.nn.functional.selu(torch.tensor(-1e3, dtype=torch.float64)).item()
    assert low == pytest.approx(a * saturated + b, abs=1e-12)


@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_dropout_has_torchs_statistics(name):
    x = torch.randn(2000, 500, dtype=torch.float64)
    low = []
    for where in (F, torch.nn.functional):
        y = getattr(where, name)(x, P, True)
        assert abs(y.mean().item()) < 4 / 1000  # four standard deviations, of 10^6 elements
        assert abs(y.var().item() - 1) < 0.01
        low.append(y.flatten().mode().values.item())
        share = (y == low[-1]).double().mean().item()
        assert abs(share - P) < 4 * math.sqrt(P * (1 - P)) / 1000
    assert low[0] == pytest.approx(low[1], rel=1e-4)  # q differs from p by less than 2^-16


@kinds
def test_as_many_are_kept_as_should_be(call, shape, drawn):
    large = (200_000 // math.prod(drawn[1:]), *shape[1:])
    n = large[0] * math.prod(drawn[1:])
    y = call(torch.ones(large), P, True, seed=1)
    kept = (y == y.max()).view(n, -1)
    assert (kept == kept[:, :1]).all()
    assert abs(kept[:, 0].double().mean().item() - (1 - Q)) < 4 * math.sqrt(Q * (1 - Q) / n)


@kinds
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (P, False)])
def test_nothing_is_done_where_nothing_is_dropped(call, shape, drawn, p, training):
    x = torch.randn(shape)
    y = call(x, p, training)
    assert y is x or call is _add_to_zeros
    assert torch.equal(y, x)


def test_a_sum_keeps_the_seed_alone():
    x, residual = (torch.randn(64, 8, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
        F.dropout_add(x, residual)
    assert kept == [8]


def test_autocast_leaves_dtypes_alone(device):
    x = torch.randn(64, 8, device=device)
    half = x.bfloat16()
    with torch.autocast(device, torch.bfloat16):
        for call, shape, _ in KINDS.values():
            for dtype in (torch.float32, torch.float16):
                assert call(torch.ones(shape, device=device, dtype=dtype), P, True).dtype == dtype
        y = F.dropout_add(half, x, P, seed=SEED)
        assert torch.equal(y, x + F.dropout(half, P, seed=SEED))
        with pytest.raises(ValueError, match="residual must have shape"):
            F.dropout_add(half, x[0], P)
    with pytest.raises(TypeError, match="residual must have the dtype"):
        F.dropout_add(half, x, P)


# --- in place


IN_PLACE = [kind for kind in KINDS if kind not in ("drop_path", "dropout_add")]
in_place = pytest.mark.parametrize(
    ("call", "shape"), [KINDS[kind][:2] for kind in IN_PLACE], ids=IN_PLACE
)


@in_place
def test_in_place(call, shape, device):
    x = torch.randn(shape, device=device)
    expected = call(x, P, True, seed=SEED)
    written = x.clone()
    assert call(written, P, True, seed=SEED, inplace=True) is written
    assert torch.equal(written, expected)
    # Where autograd records: what no leaf is may be written to.
    leaf = x.clone().requires_grad_()
    y = leaf * 2
    result = call(y, P, True, seed=SEED, inplace=True)
    assert result is y
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    (same,) = torch.autograd.grad(call(leaf * 2, P, True, seed=SEED).sum(), leaf)
    assert torch.equal(grad, same)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        call(leaf, P, True, inplace=True)
    assert torch.equal(leaf, x)
    with torch.no_grad():
        assert call(leaf, P, True, inplace=True) is leaf


@in_place
def test_in_place_within_transforms(call, shape, device):
    x = torch.randn(3, *shape, device=device)
    expected = torch.vmap(lambda v: call(v, P, True, seed=SEED))(x)
    written = x.clone()
    torch.vmap(lambda v: call(v, P, True, seed=SEED, inplace=True))(written)
    assert torch.equal(written, expected)
    written = x[0].clone()
    compiled = torch.compile(
        lambda v: call(v, P, True, seed=SEED, inplace=True), fullgraph=True, backend="aot_eager"
    )
    compiled(written)
    assert torch.equal(written, expected[0])


def test_in_place_within_derivatives_and_views(device):
    x = torch.randn(6, 4, device=device)

    def cubes(inplace):
        def function(v):
            return F.alpha_dropout(v * 1, P, True, inplace, seed=SEED).pow(3).sum()

        return function

    ours, expected = (torch.func.hessian(cubes(inplace))(x) for inplace in (True, False))
    torch.testing.assert_close(ours, expected)
    ours, expected = (torch.func.jvp(cubes(inplace), (x,), (x,)) for inplace in (True, False))
    torch.testing.assert_close(ours, expected)
    part = x[:, ::2]
    result = F.dropout(part.clone(), P, seed=SEED)
    F.dropout(part, P, inplace=True, seed=SEED)
    assert torch.equal(x[:, ::2], result)


def test_in_place_is_refused_where_torch_refuses_it():
    with pytest.raises(RuntimeError, match="single memory location"):
        F.dropout(torch.ones(1).expand(8), P, inplace=True)
    y = torch.randn(8, requires_grad=True).relu()
    F.dropout(y, P, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda s: F.dropout(torch.ones(8), P, True, True, seed=s))(
            torch.ones(3, 1).long()
        )
    # Not dropped is not written.
    leaf = torch.ones(8, requires_grad=True)
    assert F.dropout(leaf, P, False, True) is leaf


# --- transforms: what is not in the op table


@kinds
def test_vmap_draws_for_each_sample_or_for_all(call, shape, drawn, device):
    x = torch.ones(4, *shape, device=device)
    same = torch.vmap(lambda v: call(v, P, True), randomness="same")(x)
    assert all(torch.equal(row, same[0]) for row in same)
    different = torch.vmap(lambda v: call(v, P, True), randomness="different")(x)
    assert not any(torch.equal(row, different[0]) for row in different[1:])
    seeds = torch.arange(4, device=device)[:, None]
    each = torch.vmap(lambda v, s: call(v, P, True, seed=s))(x, seeds)
    for row, seed in zip(each, seeds, strict=True):
        assert torch.equal(row, call(x[0], P, True, seed=seed))


@kinds
def test_compiled_and_exported(call, shape, drawn, device):
    class Model(torch.nn.Module):
        def forward(self, x):
            return call(x, P, True, seed=SEED)

    x = torch.randn(shape, device=device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Model(), (x,), dynamic_shapes=({0: batch},))
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager", dynamic=True)
    for other in (x, x[:-1], x[:3]):
        expected = call(other, P, True, seed=SEED)
        assert torch.equal(program.module()(other), expected)
        assert torch.equal(compiled(other), expected)


@pytest.mark.parametrize(
    "seeds",
    [torch.arange(3), torch.arange(6).view(6, 1)[::2], torch.tensor([[3]]).expand(3, 1)],
    ids=["0-d", "strided", "expanded"],
)
def test_seeds_of_vmap_in_any_layout(seeds, device):
    x, seeds = torch.ones(3, 64, device=device), seeds.to(device)
    dropped = torch.vmap(lambda v, s: F.dropout(v, P, seed=s))(x, seeds)
    masks = torch.vmap(lambda s: F.dropout_mask(64, P, seed=s))(seeds)
    for row, mask, seed in zip(dropped, masks, seeds, strict=True):
        expected = F.dropout_mask(64, P, seed=seed)
        assert torch.equal(row != 0, expected)
        assert torch.equal(mask, expected)


def test_one_sample_of_an_outer_vmap(device):
    x = torch.ones(3, 4, 64, device=device)

    def same(x):
        return torch.vmap(lambda row: F.dropout(row, P), randomness="same")(x)

    for outer in (
        torch.vmap(same, randomness="different")(x[:1]),
        torch.vmap(same, randomness="different", chunk_size=2)(x),  # and the last is one
    ):
        assert all(torch.equal(row, y[0]) for y in outer for row in y)


@pytest.mark.parametrize("lead", [(1,), (3, 1), (1, 1), (0,), (2, 0)])
def test_packed_masks_and_dropout_under_vmap_of_any_size(lead, device):
    seeds = torch.arange(math.prod(lead), device=device).view(*lead, 1)

    def mask(seed):
        return F.dropout_mask((20,), 0.5, seed=seed, packed=True)

    def drop(x, seed):
        return F.dropout(x, 0.5, seed=seed)

    for _ in lead:
        mask, drop = torch.vmap(mask), torch.vmap(drop)
    x = torch.ones(*lead, 20, device=device)
    masks, dropped = mask(seeds), drop(x, seeds)
    assert masks.shape == (*lead, 3) or 0 in lead
    assert dropped.shape == x.shape
    for i in range(math.prod(lead)):
        one = F.dropout_mask((20,), 0.5, seed=i, packed=True, device=device)
        assert torch.equal(masks.view(-1, 3)[i], one)
        assert torch.equal(dropped.view(-1, 20)[i], F.dropout(x.view(-1, 20)[i], 0.5, seed=i))


def test_kept_zeros_keep_their_sign(device):
    x = torch.tensor([-0.0, 0.0], device=device).repeat(32)
    kept = F.dropout_mask(x.shape, 0.5, seed=1, device=device)
    y = F.dropout(x, 0.5, seed=1)
    assert torch.equal(y.signbit(), x.signbit() & kept)
