"""The mask: a pure function of (seed, i), the same everywhere, with the right statistics."""

from __future__ import annotations

import math

import numpy as np
import philox_numpy
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

from torchcalc import _C, functional, nn
from torchcalc.ops import activations
from torchcalc.reference import dropout as reference

# Random123's kat_vectors: counter, key, words of philox4x32-10.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, -1, 2**62 + 12345, -(2**63), 2**63 - 1]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    counter, key = np.array(counter, dtype=np.uint32), np.array(key, dtype=np.uint32)
    assert tuple(_C.philox4x32(counter, key)) == words
    assert tuple(philox_numpy.philox4x32_10(counter, key)) == words


@pytest.mark.parametrize("seed", SEEDS)
def test_kernel_equals_reference_and_numpy(seed, device):
    n, p = 5003, 0.3
    expected = torch.from_numpy(philox_numpy.dropout_mask(n, seed, round(65536 * p)))
    seed_tensor = torch.tensor([seed], device=device)
    kernel = functional.dropout_mask((n,), p, seed=seed, device=device)
    assert torch.equal(kernel.cpu(), expected)
    assert torch.equal(reference.dropout_mask((n,), seed_tensor, round(65536 * p)).cpu(), expected)
    # The ops that draw it on the way: alone, behind a GEMM, and again in both backward passes.
    ones = torch.ones(n, device=device, requires_grad=True)
    dropped = functional.dropout(ones, p, seed=seed)
    assert torch.equal((dropped != 0).cpu(), expected)
    assert torch.equal(torch.autograd.grad(dropped.sum(), ones)[0], dropped)
    x = torch.ones(n, 1, device=device)
    weight = torch.ones(1, 1, device=device)
    for activation in ("identity", "relu", "gelu"):
        y = functional.linear_act(x, weight, None, activation, dropout_p=p, seed=seed)
        assert torch.equal((y != 0).flatten().cpu(), expected)
    z = torch.ones(n, 1, device=device, requires_grad=True)
    y = functional.linear_act(z, weight, None, "gelu", dropout_p=p, seed=seed)
    assert torch.equal((torch.autograd.grad(y.sum(), z)[0] != 0).flatten().cpu(), expected)


@pytest.mark.parametrize("cols", [1, 3, 7, 8, 1000, 1031])
def test_index_is_row_major_for_any_row_length(cols, device):
    rows, p = 5, 0.5
    expected = torch.from_numpy(philox_numpy.dropout_mask(rows * cols, 9, 32768)).view(rows, cols)
    x = torch.ones(rows, 1, device=device)
    weight = torch.ones(cols, 1, device=device, requires_grad=True)
    y = functional.linear_act(x, weight, None, "gelu", dropout_p=p, seed=9)
    assert torch.equal((y != 0).cpu(), expected)
    # the fused backward, tile by tile
    (grad,) = torch.autograd.grad(y.sum(), weight)
    unit = torch.autograd.grad(torch.nn.functional.gelu(weight).sum(), weight)[0]
    torch.testing.assert_close(grad.cpu(), unit.cpu() * 2 * expected.sum(0)[:, None])


@pytest.mark.parametrize("p", [0.0, 1 / 65536, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_mean_and_variance_of_the_keep_rate(p):
    n, q = 2_000_000, 1 - round(65536 * p) / 65536
    kept = functional.dropout_mask((n,), p, seed=7).double()
    sigma = math.sqrt(q * (1 - q) / n)
    assert abs(kept.mean().item() - q) <= 4 * sigma
    assert abs(kept.var().item() - q * (1 - q)) <= 4 * sigma
    # Blocks of 64 are independent too: their sums have the binomial variance.
    sums = kept.view(-1, 64).sum(1)
    variance = 64 * q * (1 - q)
    fourth_moment = variance * (1 + 3 * 62 * q * (1 - q))
    sigma = math.sqrt((fourth_moment - variance**2) / len(sums))
    assert abs(sums.var().item() - variance) <= 4 * sigma


def test_a_lane_at_the_threshold_is_kept(device):
    drawn = philox_numpy.lanes(64, 7)
    for i in (0, 5, 63):
        p = int(drawn[i]) / 65536
        x, weight = torch.ones(64, 1, device=device), torch.ones(1, 1, device=device)
        assert functional.dropout_mask((64,), p, seed=7, device=device)[i]
        assert functional.dropout(x, p, seed=7)[i] != 0
        assert functional.linear_act(x, weight, dropout_p=p, seed=7)[i] != 0
        just_above = (int(drawn[i]) + 1) / 65536
        assert not functional.dropout_mask((64,), just_above, seed=7, device=device)[i]


def test_seeds_give_independent_masks():
    a, b = (functional.dropout_mask((100_000,), 0.5, seed=s) for s in (1, 2))
    assert abs((a == b).double().mean().item() - 0.5) < 0.01


def test_expectation_is_exact():
    # Over all lanes, (65536 - t) of 65536 are kept and scaled by 65536 / (65536 - t).
    for p in (0.1, 0.3, 0.9):
        threshold = round(65536 * p)
        scale = functional.dropout(torch.ones(64, dtype=torch.float64), p, seed=1).max().item()
        assert scale * (65536 - threshold) == pytest.approx(65536, rel=1e-15)


def test_dropped_elements_are_zero_where_x_is_not_finite(device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0], device=device).repeat(64)
    x.requires_grad_()
    mask = functional.dropout_mask(x.shape, 0.5, seed=3, device=device)
    y = functional.dropout(x, 0.5, seed=3)
    assert (y[~mask] == 0).all()
    torch.testing.assert_close(y[mask], 2 * x[mask], equal_nan=True)
    z = functional.linear_act(x[:, None], torch.ones(1, 1, device=device), dropout_p=0.5, seed=3)
    assert (z[~mask] == 0).all()
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert (grad[~mask] == 0).all()


def test_same_bits_for_any_number_of_threads():
    _, *gelu = activations.resolve("", "gelu")

    def run():
        torch.manual_seed(0)
        x = torch.randn(700, 33, requires_grad=True)
        weight, bias = torch.randn(1500, 33, requires_grad=True), torch.randn(1500)
        y = functional.linear_act(x, weight, bias.requires_grad_(), dropout_p=0.3, seed=5)
        dropped = functional.dropout(torch.ones(100_003), 0.3, seed=5)
        dz_and_bias = torch.ops.torchcalc.act_bias_grad(
            y.detach(), y.detach(), torch.tensor([5]), *gelu, 19661, 1, None, activations.INPUT
        )
        return [dropped, *dz_and_bias]

    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_seed_may_be_any_integer():
    x = torch.ones(64)
    expected = functional.dropout(x, 0.5, seed=3)
    for seed in (np.int64(3), np.int32(3), torch.tensor(3), torch.tensor([[3]])):
        assert torch.equal(functional.dropout(x, 0.5, seed=seed), expected)


def test_sizes_of_a_mask_may_be_symbols_or_numpys():
    def mask(x):
        return functional.dropout_mask(x.shape, 0.5, seed=1)

    traced = make_fx(mask, tracing_mode="symbolic")(torch.randn(5, 3))
    assert torch.equal(traced(torch.randn(7, 2)), mask(torch.randn(7, 2)))
    counter = CompileCounter()
    compiled = torch.compile(mask, backend=counter, fullgraph=True)
    for n in range(4, 9):
        assert torch.equal(compiled(torch.randn(n, 3)), mask(torch.randn(n, 3)))
    assert counter.frame_count == 2
    assert functional.dropout_mask((np.int64(3), 2)).shape == (3, 2)


def test_torchs_generator_draws_the_seed(device):
    x = torch.ones(1000, device=device)
    torch.manual_seed(3)
    a, b = functional.dropout(x), functional.dropout(x)
    torch.manual_seed(3)
    assert torch.equal(functional.dropout(x), a)
    assert not torch.equal(a, b)


def test_checkpoint_draws_the_same_mask(device):
    x = torch.randn(8, 16, device=device, requires_grad=True)
    layer = nn.LinearAct(16, 32, dropout_p=0.5, device=device)
    torch.manual_seed(1)
    plain = torch.autograd.grad(layer(x).sum(), x)[0]
    torch.manual_seed(1)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], plain)


def test_eager_and_compiled_agree_for_a_given_seed(device):
    x = torch.randn(33, 7, device=device)
    seed = torch.tensor([11], device=device)
    compiled = torch.compile(
        lambda x, s: functional.dropout(x, 0.4, seed=s), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x, seed), functional.dropout(x, 0.4, seed=seed))


def test_vmap_randomness(device):
    x = torch.ones(4, 1000, device=device)
    for function in (
        functional.dropout,
        lambda v: functional.linear_act(
            v[:, None], torch.ones(1, 1, device=device), None, "relu", dropout_p=0.5
        ),
    ):
        same = torch.vmap(function, randomness="same")(x)
        assert all(torch.equal(row, same[0]) for row in same)
        different = torch.vmap(function, randomness="different")(x)
        assert not any(torch.equal(row, different[0]) for row in different[1:])
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(function)(x)
    # One seed a sample: the masks of those seeds, each from its own element 0.
    seeds = torch.arange(4, device=device)[:, None]
    masks = torch.vmap(lambda v, s: functional.dropout(v, seed=s))(x, seeds)
    for row, s in zip(masks, seeds, strict=True):
        assert torch.equal(row, functional.dropout(x[0], seed=s))
    shapes = torch.vmap(lambda s: functional.dropout_mask((5,), seed=s))(seeds)
    assert shapes.shape == (4, 5)


def test_eval_and_p_zero_are_the_identity():
    x = torch.randn(5)
    assert functional.dropout(x, 0.5, False) is x
    assert functional.dropout(x, 0.0) is x
    assert nn.Dropout(0.5).eval()(x) is x


@pytest.mark.skipif("not config.getoption('--large')", reason="needs 10 GB: pytest --large")
def test_more_than_2_to_the_31_elements():
    n = 2**31 + 13
    y = functional.dropout(torch.ones(n, dtype=torch.bfloat16), 0.5, seed=1)
    tail = torch.from_numpy(philox_numpy.dropout_mask(4096, 1, 32768, first=n - 4096))
    assert torch.equal(y[-4096:] != 0, tail)
    mask = functional.dropout_mask((n,), 0.5, seed=1)
    assert torch.equal(mask[-4096:], tail)
    x = torch.ones(2**16 + 1, 1, dtype=torch.bfloat16)
    weight = torch.ones(2**15, 1, dtype=torch.bfloat16)
    y = functional.linear_act(x, weight, None, "relu", dropout_p=0.5, seed=1)
    tail = philox_numpy.dropout_mask(4096, 1, 32768, first=y.numel() - 4096)
    assert torch.equal(y.flatten()[-4096:] != 0, torch.from_numpy(tail))
