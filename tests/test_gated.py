"""Gated linear units: what they are, what they keep, and that vmap makes no loop of them."""

from __future__ import annotations

import itertools

import philox_numpy
import pytest
import torch
import torch.nn.functional as F

from torchcalc import functional, nn
from torchcalc.ops.activations import resolve

SEED, P = 11, 0.4

VARIANTS = {
    "sigmoid": torch.sigmoid,  # GLU
    "relu": F.relu,  # ReGLU
    "gelu": F.gelu,  # GEGLU
    "silu": F.silu,  # SwiGLU
    "identity": lambda g: g,  # bilinear
}


def _inputs(device, dtype=torch.float64, rows=(3, 4), k=5, n=7):
    sizes = (*rows, k), (n, k), (n, k), (n,), (n,)
    return [
        torch.randn(s, device=device, dtype=dtype).requires_grad_(dtype.is_floating_point)
        for s in sizes
    ]


def _forms(gate, value):
    """One tensor, a pair, and a pair as a list."""
    return torch.cat([gate, value]), (gate, value), [gate, value]


def _same_gradients(actual, expected, inputs):
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent, retain_graph=True),
    )


@pytest.mark.parametrize(("activation", "f"), VARIANTS.items(), ids=list(VARIANTS))
def test_every_form_is_the_composition(activation, f, device):
    x, wg, wv, bg, bv = inputs = _inputs(device)
    expected = f(F.linear(x, wg, bg)) * F.linear(x, wv, bv)
    for weight, bias in itertools.product(_forms(wg, wv), _forms(bg, bv)):
        _same_gradients(functional.gated_linear(x, weight, bias, activation), expected, inputs)
    without_bias = f(F.linear(x, wg)) * F.linear(x, wv)
    for weight in _forms(wg, wv):
        actual = functional.gated_linear(x, weight, activation=activation)
        _same_gradients(actual, without_bias, inputs[:3])


def test_glu_of_torch_has_the_value_first(device):
    x, weight = torch.randn(4, 6, device=device), torch.randn(10, 6, device=device)
    value, gate = weight.chunk(2)
    expected = F.glu(F.linear(x, weight))
    torch.testing.assert_close(functional.gated_linear(x, (gate, value), None, "sigmoid"), expected)


def test_activations_as_modules(device):
    x, wg, wv, *_ = _inputs(device)
    for module in (torch.nn.LeakyReLU(0.2), torch.nn.Softplus(2.0), torch.nn.Hardtanh(-0.5, 2.0)):
        expected = module(F.linear(x, wg)) * F.linear(x, wv)
        _same_gradients(functional.gated_linear(x, (wg, wv), None, module), expected, [x, wg, wv])


def test_the_mlp_of_llama(device, dtype):
    def linear(n, k):
        return torch.nn.Linear(k, n, bias=False, device=device, dtype=dtype)

    gate_proj, up_proj, down_proj = linear(40, 16), linear(40, 16), linear(16, 40)
    x = torch.randn(2, 3, 16, device=device, dtype=dtype)
    expected = down_proj(F.silu(gate_proj(x)) * up_proj(x))
    actual = down_proj(functional.gated_linear(x, (gate_proj.weight, up_proj.weight)))
    tolerance = {} if dtype in (torch.float32, torch.float64) else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("rows", [(), (5,), (2, 3)])
def test_the_mask_is_that_of_the_output(rows, device):
    x, wg, wv, *_ = _inputs(device, rows=rows)
    shape = (*rows, 7)
    size = torch.Size(shape).numel()
    kept = torch.from_numpy(philox_numpy.dropout_mask(size, SEED, round(65536 * P)))
    kept = kept.reshape(shape).to(device)
    scale = 65536 / (65536 - round(65536 * P))
    assert torch.equal(kept, functional.dropout_mask(shape, P, seed=SEED, device=device))
    expected = torch.where(kept, scale * F.silu(F.linear(x, wg)) * F.linear(x, wv), 0.0)
    for weight in _forms(wg, wv):
        actual = functional.gated_linear(x, weight, dropout_p=P, seed=SEED)
        _same_gradients(actual, expected, [x, wg, wv])
    plain = functional.gated_linear(x, (wg, wv))
    eval_mode = functional.gated_linear(x, (wg, wv), dropout_p=P, training=False)
    assert torch.equal(plain, eval_mode)


@pytest.mark.parametrize(("layer", "rows"), [("linear_act", 130), ("gated_linear", 260)])
def test_blocks_of_rows_have_the_whole_tensors_mask(layer, rows, device):
    # More rows than a block of the GEMM, without gradients and with them.
    x = torch.ones(2100, 1, device=device)
    weight = torch.ones(rows, 1, device=device)
    kept = functional.dropout_mask((2100, 130), P, seed=SEED, device=device)
    for requires_grad in (False, True):
        weight.requires_grad_(requires_grad)
        y = getattr(functional, layer)(x, weight, activation="silu", dropout_p=P, seed=SEED)
        assert torch.equal(y != 0, kept)
        assert y.detach()[kept].unique().numel() == 1


def test_a_shard_has_its_part_of_the_mask(device):
    x, wg, wv, *_ = _inputs(device, rows=(6,), n=8)
    whole = functional.gated_linear(x, (wg, wv), dropout_p=P, seed=SEED)
    for rows, columns in ((slice(0, 6), slice(3, 8)), (slice(2, 5), slice(0, 8))):
        shard = (6, 8), (rows.start, columns.start)
        part = functional.gated_linear(
            x[rows], (wg[columns], wv[columns]), dropout_p=P, seed=SEED, shard=shard
        )
        _same_gradients(part, whole[rows, columns], [x, wg, wv])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_dropped_elements_are_zero_whatever_they_were(value, device):
    kept = functional.dropout_mask((64, 1), P, seed=SEED, device=device)
    x = torch.where(kept, 1.0, value).requires_grad_()
    bias = torch.zeros(2, device=device, requires_grad=True)
    weight = torch.tensor([[1.0], [2.0]], device=device)
    y = functional.gated_linear(x, weight, bias, dropout_p=P, seed=SEED)
    assert torch.equal(y != 0, kept)
    grads = torch.autograd.grad(y.sum(), (x, bias), create_graph=True)
    assert torch.equal(grads[0] != 0, kept)
    assert grads[1].isfinite().all()
    (second,) = torch.autograd.grad(grads[0].sum(), x)
    assert torch.equal(second != 0, kept)


@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, P])
def test_kept_are_the_input_the_weights_and_the_preactivations(is_pair, dropout_p, device):
    x, wg, wv, bg, bv = _inputs(device, torch.float32, rows=(16,))
    weight, bias = ((wg, wv), (bg, bv)) if is_pair else (torch.cat([wg, wv]), torch.cat([bg, bv]))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        functional.gated_linear(x, weight, bias, dropout_p=dropout_p)
    mine = {t.data_ptr() for t in (x, *(weight if is_pair else (weight,)))}
    others = {t.data_ptr(): t for t in kept if t.data_ptr() not in mine}
    expected = 4 * 16 * 14 + (8 if dropout_p else 0)  # z, and the seed
    assert sum(t.nbytes for t in others.values()) == expected
    assert mine <= {t.data_ptr() for t in kept}


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("is_pair", [False, True])
def test_the_gradient_of_one_alone(is_pair, needed, device):
    inputs = [t.detach() for t in _inputs(device)]
    inputs[needed].requires_grad_()
    x, wg, wv, bg, bv = inputs
    weight, bias = ((wg, wv), (bg, bv)) if is_pair else (torch.cat([wg, wv]), torch.cat([bg, bv]))
    expected = F.silu(F.linear(x, wg, bg)) * F.linear(x, wv, bv)
    _same_gradients(functional.gated_linear(x, weight, bias), expected, [inputs[needed]])


def test_per_sample_gradients_are_those_of_a_loop(device):
    x, wg, wv, bg, bv = (t.detach() for t in _inputs(device, rows=(6,)))
    for weight, bias in zip(_forms(wg, wv)[:2], _forms(bg, bv)[:2], strict=True):

        def loss(weight, bias, x, seed):
            y = functional.gated_linear(x, weight, bias, dropout_p=P, seed=seed)
            return y.square().sum()

        seeds = torch.arange(6, device=device).view(6, 1)
        gradients = torch.func.grad(loss, (0, 1))
        actual = torch.vmap(gradients, (None, None, 0, 0))(weight, bias, x, seeds)
        for b in range(6):
            expected = gradients(weight, bias, x[b], seeds[b])
            found = torch.utils._pytree.tree_map(lambda t, b=b: t[b], actual)
            torch.testing.assert_close(found, expected)


def test_stacked_modules_are_a_loop_over_them(device):
    models = [nn.GatedLinear(5, 7, device=device) for _ in range(4)]
    params, buffers = torch.func.stack_module_state(models)
    x = torch.randn(3, 5, device=device)

    def call(p, b):
        return torch.func.functional_call(models[0], (p, b), (x,))

    expected = torch.stack([m(x) for m in models])
    torch.testing.assert_close(torch.vmap(call)(params, buffers), expected)

    def loss(p, b):
        return call(p, b).square().sum()

    gradients = torch.vmap(torch.func.grad(loss))(params, buffers)
    expected.square().sum().backward()
    for name in ("weight", "bias"):
        stacked = torch.stack([getattr(m, name).grad for m in models])
        torch.testing.assert_close(gradients[name], stacked)


def test_vmap_calls_each_op_once():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += function.namespace == "torchcalc"
            return function(*args, **(kwargs or {}))

    weights, x = torch.randn(9, 8, 5), torch.randn(3, 5)
    with Count() as count:
        torch.vmap(lambda w: functional.gated_linear(x, w, dropout_p=P, seed=SEED))(weights)
    assert count.calls == 1


def test_initialised_as_two_linear_layers(device):
    torch.manual_seed(0)
    halves = [torch.nn.Linear(5, 7, device=device) for _ in range(2)]
    torch.manual_seed(0)
    layer = nn.GatedLinear(5, 7, device=device)
    assert torch.equal(layer.weight, torch.cat([h.weight for h in halves]))
    assert torch.equal(layer.bias, torch.cat([h.bias for h in halves]))
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(3, 5, device=device)
    torch.testing.assert_close(layer(x), F.silu(halves[0](x)) * halves[1](x))


def test_the_module(device):
    layer = nn.GatedLinear(4, 300, bias=False, activation="gelu", dropout_p=P, device=device)
    assert layer.bias is None
    assert repr(layer) == (
        "GatedLinear(in_features=4, out_features=300, bias=False, activation='gelu', dropout_p=0.4)"
    )
    x = torch.randn(2, 4, device=device)
    assert (layer(x) == 0).any()
    gate, value = F.linear(x, layer.weight).chunk(2, -1)
    torch.testing.assert_close(layer.eval()(x), F.gelu(gate) * value)


def test_autocast_casts_pairs_too():
    x, wg, wv, bg, bv = _inputs("cpu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        pair = functional.gated_linear(x, (wg, wv), (bg, bv))
        one = functional.gated_linear(x, torch.cat([wg, wv]), torch.cat([bg, bv]))
    assert pair.dtype == one.dtype == torch.bfloat16
    torch.testing.assert_close(pair, one)
    pair.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, wg, wv, bg, bv))


def test_flops_are_those_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    x, wg, wv, *_ = _inputs("cpu")
    for weight in _forms(wg, wv)[:2]:
        with FlopCounterMode(display=False) as counter:
            functional.gated_linear(x, weight).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 12 * 5 * 14


def test_functions_are_overridden_as_one(device):
    class Subclass(torch.Tensor):
        pass

    x, weight = torch.randn(3, 5, device=device), torch.randn(8, 5, device=device)
    value = weight[4:].as_subclass(Subclass)
    assert isinstance(functional.gated_linear(x, weight.as_subclass(Subclass)), Subclass)
    assert isinstance(functional.gated_linear(x, (weight[:4], value)), Subclass)


def test_second_derivatives_in_every_dtype(dtype, device):
    """Of the kernel, against float64."""
    grad, gate, value = (torch.randn(5, 9, device=device).to(dtype) for _ in range(3))
    c = torch.randn(5, 18, device=device).to(dtype)
    z = torch.cat([gate, value], -1)
    silu = *resolve("test", "silu")[1:], 0, 1, None
    dgrad, dz = torch.ops.torchcalc.gated_grad_grad(c, grad, z, None, *silu)
    exact = [t.double().requires_grad_() for t in (grad, z)]
    g, v = exact[1].chunk(2, -1)
    (first,) = torch.autograd.grad(
        torch.nn.functional.silu(g) * v, exact[1], exact[0], create_graph=True
    )
    expected = torch.autograd.grad(first, exact, c.double())
    eps = max(torch.finfo(dtype).eps, 1e-13)
    for actual, e in zip((dgrad, dz), expected, strict=True):
        torch.testing.assert_close(actual.double(), e, rtol=4 * eps, atol=16 * eps)


def test_gradients_of_a_pair_are_tensors_of_their_own(device):
    x, *pairs = (
        torch.randn(s, device=device, requires_grad=True) for s in ((5, 7), (4, 7), (4, 7), 4, 4)
    )
    y = functional.gated_linear(x, pairs[:2], pairs[2:])
    gradients = torch.autograd.grad(y.sum(), pairs)
    assert len({t.untyped_storage().data_ptr() for t in gradients}) == 4
    assert {t._version for t in gradients} == {0}
    gradients[2].mul_(2)
    assert gradients[3]._version == 0
