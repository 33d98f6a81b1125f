"""vmap, torch.compile, opcheck, autocast and memory layouts over the op table."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from conftest import rows
from torch.func import grad, vmap

from torchcalc import optim
from torchcalc.ops.activations import INPUT, NOTHING, SCALED_OUTPUT
from torchcalc.testing import OPS

SIZE = 3  # of a vmapped dimension


def _stack(t, dim):
    return torch.stack([t, 2 * t, t - 1], dim)


@rows("vmap")
@pytest.mark.parametrize("batched", ["all", "first", "last"])
def test_vmap(op, batched, device):
    for sample in op.samples(torch.device(device), torch.float64):
        n = len(sample.inputs)
        chosen = {"all": range(n), "first": {0}, "last": {n - 1}}[batched]
        dims = tuple(min(1, t.dim()) if i in chosen else None for i, t in enumerate(sample.inputs))
        inputs = tuple(
            t if d is None else _stack(t, d) for t, d in zip(sample.inputs, dims, strict=True)
        )

        def scalar(*t, call=sample.call):
            return call(*t).square().sum()

        everything = tuple(range(n))
        for function in (
            sample.call,
            grad(scalar, everything),
            grad(grad_norm(scalar), everything),
        ):
            actual = vmap(function, in_dims=dims)(*inputs)
            for b in range(SIZE):
                one = function(
                    *(t if d is None else t.select(d, b) for t, d in zip(inputs, dims, strict=True))
                )
                torch.testing.assert_close(_select(actual, b), one, msg=sample.name)


def grad_norm(scalar):
    """The squared norm of a gradient, to be differentiated again."""

    def norm(*t):
        grads = grad(scalar, tuple(range(len(t))))(*t)
        return sum(g.square().sum() for g in grads)

    return norm


def _select(result, b):
    return tuple(r[b] for r in result) if isinstance(result, tuple) else result[b]


def _differentiable(op):
    return "gradcheck" not in op.skip


def _compiled_equals_eager(op, device, backend):
    for sample in op.samples(torch.device(device), torch.float32):
        inputs = [t.clone().requires_grad_(_differentiable(op)) for t in sample.inputs]
        torch.compiler.reset()
        compiled = torch.compile(sample.call, fullgraph=True, backend=backend)
        expected, actual = sample.call(*inputs), compiled(*inputs)
        torch.testing.assert_close(actual, expected, msg=sample.name)
        if _differentiable(op):
            cotangent = torch.randn_like(expected)
            torch.testing.assert_close(
                torch.autograd.grad(actual, inputs, cotangent),
                torch.autograd.grad(expected, inputs, cotangent),
            )
        if backend == "inductor":
            break


@pytest.mark.no_kernels  # a graph with the same ops
@rows()
def test_compile(op, device):
    _compiled_equals_eager(op, device, "aot_eager")


@pytest.mark.no_kernels  # a graph with the same ops
@rows("gradcheck")
@pytest.mark.parametrize("transform", ["grad", "grad of grad", "jvp", "vmap of grad"])
def test_compiled_transforms(op, transform, device):
    for sample in islice(op.samples(torch.device(device), torch.float64), 2):
        x, *rest = sample.inputs

        def scalar(x, rest=tuple(rest), call=sample.call):
            return call(x, *rest).pow(3).sum()

        function = {
            "grad": grad(scalar),
            "grad of grad": grad(lambda x, s=scalar: grad(s)(x).square().sum()),
            "jvp": lambda x, s=scalar: torch.func.jvp(s, (x,), (x + 1,))[1],
            "vmap of grad": lambda x, s=scalar: vmap(grad(s))(torch.stack([x, 2 * x])),
        }[transform]
        torch.compiler.reset()
        actual = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(actual, function(x), msg=sample.name)


@rows("vmap")
def test_vmap_of_no_samples(op, device):
    for sample in op.samples(torch.device(device), torch.float32):
        inputs = tuple(t.new_zeros(0, *t.shape) for t in sample.inputs)
        expected = (0, *sample.call(*sample.inputs).shape)
        assert vmap(sample.call)(*inputs).shape == expected, sample.name


# Once per op, because inductor compiles C++; above, aot_eager traces every row.
ONE_ROW_EACH = [op for op in OPS if "linear" not in op.name or "[gelu]" in op.name]


@pytest.mark.slow
@pytest.mark.parametrize("op", ONE_ROW_EACH, ids=lambda op: op.name)
def test_compile_with_inductor(op, device):
    _compiled_equals_eager(op, device, "inductor")


@rows("autocast")
def test_autocast(op, device):
    # bfloat16 as torch.nn.functional.linear would; ops without a GEMM keep their input's dtype.
    for sample in op.samples(torch.device(device), torch.float32):
        inputs = [t.clone().requires_grad_() for t in sample.inputs]
        with torch.autocast(device, torch.bfloat16):
            actual, expected = sample.call(*inputs), sample.reference(*inputs)
        assert actual.dtype == expected.dtype, sample.name
        torch.testing.assert_close(actual, expected, atol=0.1, rtol=0.02, msg=sample.name)
        cotangent = torch.randn_like(actual)
        for a, e in zip(
            torch.autograd.grad(actual, inputs, cotangent),
            torch.autograd.grad(expected, inputs, cotangent),
            strict=True,
        ):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, e, atol=0.2, rtol=0.05, msg=sample.name)


def _layouts(t):
    """The values of t as: every second element, transposed memory, and an odd offset."""
    spread = torch.zeros(*t.shape, 2, dtype=t.dtype, device=t.device)
    spread[..., 0] = t
    yield spread[..., 0]
    yield t.mT.contiguous().mT if t.dim() > 1 else t
    shifted = torch.zeros(t.numel() + 1, dtype=t.dtype, device=t.device)
    shifted[1:] = t.reshape(-1)
    yield shifted[1:].view(t.shape)


@rows("layouts")
def test_layouts(op, device, dtype):
    for sample in op.samples(torch.device(device), dtype):
        leaves = [t.clone().requires_grad_() for t in sample.inputs]
        expected = sample.call(*leaves)
        cotangent = torch.randn_like(expected)
        expected_grads = torch.autograd.grad(expected, leaves, cotangent)
        for inputs in zip(*map(_layouts, sample.inputs), strict=True):
            inputs = [t.detach().requires_grad_() for t in inputs]
            for c in _layouts(cotangent):
                actual = sample.call(*inputs)
                torch.testing.assert_close(actual, expected, msg=sample.name)
                grads = torch.autograd.grad(actual, inputs, c)
                torch.testing.assert_close(grads, expected_grads, msg=sample.name)


def _raw_calls(device):
    """Each native op with arguments, every optional one given and left out."""
    x, w, b = (torch.randn(s, device=device) for s in ((3, 5), (7, 5), (7,)))
    r, seed = torch.randn(3, 7, device=device), torch.tensor([1], device=device)
    ops = torch.ops.torchcalc
    gelu, relu, tanh = ((code, 0.0, 0.0) for code in (2, 1, 5))
    drop, keep = (6000, 1, None), (0, 1, None)
    yield ops.linear_act, (x, w, None, None, None, *gelu, *keep)
    yield ops.linear_act, (x, w, b, r, seed, *gelu, *drop)
    yield ops.linear_act_keep, (x, w, None, None, seed, *gelu, *drop)
    yield ops.linear_act_keep, (x, w, b, r, None, *relu, *keep)  # bits
    yield ops.linear_act_keep, (x, w, b, r, None, *tanh, *keep)  # a
    yield ops.act, (r, None, None, *gelu, *keep)
    yield ops.act, (r, r + 1, seed, *gelu, *drop)
    yield ops.act_grad, (r, None, None, 0, 0.0, 0.0, *keep, NOTHING, 1)
    yield ops.act_grad, (r, r + 1, seed, *gelu, *drop, INPUT, 2)
    yield ops.act_bias_grad, (r, r + 1, seed, *tanh, *drop, SCALED_OUTPUT)
    yield ops.linear_act_grad, (r, x, w, r + 1, seed, *tanh, *drop, SCALED_OUTPUT, True)
    yield ops.linear_act_grad, (r, None, w, None, None, 0, 0.0, 0.0, *keep, NOTHING, False)
    w2 = torch.randn(4, 7, device=device)
    for op in (ops.mlp, ops.mlp_keep):
        yield op, (x, w, None, w2, None, None, None, None, *gelu, False, 0, 0, 1, None, None)
        layers = x, torch.cat([w, w]), b.repeat(2), w2, b[:4], r[:, :4]
        yield op, (*layers, seed, seed + 1, *gelu, True, 6000, 6000, 1, None, None)
    yield ops.mlp_grad, (r[:, :4], w2, r, None, *gelu, False, *keep)
    yield ops.mlp_grad, (r[:, :4], w2, r.repeat(1, 2), seed, *gelu, True, *drop)
    f, masked = (4, 0.0, 0.0), (6000, 3, [2, 9, 1, 1, 1, 7])  # three samples, a block each
    seeds, z = seed.expand(3).clone(), torch.randn(3, 14, device=device)
    for op in (ops.gated_linear, ops.gated_linear_keep):
        yield op, (x, torch.cat([w, w]), None, None, None, None, *f, 0, 1, None)
        yield op, (x, w, w + 1, b, b + 1, seeds, *f, *masked)
    for op in (ops.gated_grad, ops.gated_bias_grad):
        yield op, (r, z, None, *f, 0, 1, None)
        yield op, (r, z, seeds, *f, *masked)
    yield ops.gated_linear_grad, (r, x, None, None, z, None, *f, 0, 1, None, False, True)
    yield ops.gated_linear_grad, (r, x, w, w + 1, z, seeds, *f, *masked, True, True)
    yield ops.gated_grad_grad, (z + 1, r, z, None, *f, 0, 1, None)
    yield ops.gated_grad_grad, (z + 1, r, z, seeds, *f, *masked)
    plain, block = (1, None), (1, [6, 9, 2, 1, 3, 5])  # samples, block
    yield ops.dropout, (x, None, seed, 6000, *plain, 1, 1.1, 0.0, 0.0)
    yield ops.dropout, (x, x + 1, seed, 6000, *block, 1, 1.1, 0.5, -1.0)
    yield ops.dropout, (x, x + 1, seed.expand(3).clone(), 6000, 3, None, 5, 1.1, 0.5, -1.0)
    yield ops.dropout, (x, None, seed, 6000, 3, [2, 5, 1, 0, 1, 1], 5, 1.1, 0.0, 0.0)
    yield ops.dropout_mask, ([3, 5], seed, 6000, *plain, False)
    yield ops.dropout_mask, ([3, 5], seed, 6000, *block, False)
    yield ops.dropout_mask, ([3, 5], seed, 6000, *block, True)
    yield ops.dropout_mask, ([3, 5], seed.expand(3).clone(), 6000, 3, None, True)
    l1 = torch.rand((), device=device)
    for lams in ((None, None, 0.1, 0.2), (l1, x.abs(), 0.0, 0.0)):
        yield ops.prox, (x, *lams)
        yield ops.prox_grad, (x + 1, x, *lams)
        yield ops.prox_x_grad, (x + 1, x, *lams)
        yield ops.prox_grad_grad, (x, None, None, x + 1, x, *lams)
    for step in (None, x.abs().detach() + 0.1):
        yield ops.penalty_prox, (x, step, 0.5, 4, (0.3, 3.0, 1.0, 0.0, 0.0, -math.inf, math.inf), 0)
        yield ops.penalty_prox, (x, step, 0.5, 6, (0.3, 0.0, 1.0, 0.1, 0.0, -math.inf, math.inf), 1)
    params, grads = ([torch.randn(s, device=device) for s in ((3,), (2, 2))] for _ in range(2))
    m, n = torch.randn(9, device=device), torch.rand(9, device=device)
    places = torch.tensor(
        [0, 1, 0, 1, 3, 0, 5, 0, 1, 2, 2, 2, 1]
    )  # of states, steps; sizes, groups
    none = (0, (0.0, 0.0, 1.0, 0.1, 0.1, -math.inf, math.inf))
    group = (6, (0.5, 0.0, 1.0, 0.0, 0.0, -math.inf, math.inf))
    hyper = (0.1, 0.9, 0.0, 0.1, True, False, True, *none)
    yield ops.sgd_step, (params, grads, [m], places, *hyper, [], [])
    states = [m, n, torch.zeros(2, device=device)]
    hyper = (0.1, 0.9, 0.99, 1e-8, 0.1, False, True, False, *group, True, 0.2)
    yield ops.adam_step, (params, grads, states, places, *hyper, [], [])
    hyper = (0.1, 0.5, 0.1, 1e-8, False, *group, True, 1.25)
    yield ops.adagrad_step, (params, grads, states[1:], places, *hyper, [], [])
    hyper = (0.1, 0.9, 1e-8, 0.1, 0.5, False, False, *group, True, 1.25)
    yield ops.rmsprop_step, (params, grads, states, places, *hyper, [], [])
    yield ops.ftrl_step, (params, grads, [m, n], places, 0.1, 0.2, -0.5, 1.0, False, *none, [], [])
    yield ops.optim_check, (params, grads, states, 1, places)


def test_opcheck(device):
    optimizer = optim.SGD([torch.nn.Parameter(torch.ones(3, device=device))], lr=0.1)
    step = torch.ones(3, device=device), torch.ones(3, device=device)
    torch.library.opcheck(
        torch.ops.torchcalc.optimizer_step.default,
        ([step[0]], [step[1]], optimizer._number, [0]),
    )
    names = {"optimizer_step"}
    for op, args in _raw_calls(device):
        names.add(op.__name__)
        torch.library.opcheck(op.default, args)
    schemas = torch._C._dispatch_get_all_op_names()
    assert names == {n.removeprefix("torchcalc::") for n in schemas if n.startswith("torchcalc::")}


@pytest.mark.parametrize("which", [{0}, {1}, {2}, {0, 1, 2, 3, 4}])
def test_vmap_of_whole_backward(which, device):
    """Of the ops that give all gradients of a layer, by whichever of their tensors is vmapped."""
    ops, seed = torch.ops.torchcalc, torch.tensor([3], device=device)
    silu, mask = (4, 0.0, 0.0), (6000, 1, None)
    for lead in ((), (3,), (2, 3)):
        x, grad, z = (torch.randn(*lead, n, device=device) for n in (5, 7, 14))
        w = torch.randn(7, 5, device=device)
        calls = [
            (
                [grad, x, w, z[..., :7]],
                lambda g, x, w, z: ops.linear_act_grad(g, x, w, z, seed, *silu, *mask, INPUT, True),
            ),
            (
                [grad, x, w, w + 1, z],
                lambda *t: ops.gated_linear_grad(*t, seed, *silu, *mask, True, True),
            ),
            (
                [grad, x, torch.cat([w, w + 1]), z],
                lambda g, x, w, z: ops.gated_linear_grad(
                    g, x, w, None, z, seed, *silu, *mask, False, True
                ),
            ),
        ]
        for tensors, call in calls:
            dims = tuple(0 if i in which else None for i in range(len(tensors)))
            given = [
                torch.stack([t, t + 1]) if d == 0 else t for t, d in zip(tensors, dims, strict=True)
            ]
            actual = torch.vmap(call, dims, randomness="same")(*given)
            for k in range(2):
                one = [t[k] if d == 0 else t for t, d in zip(given, dims, strict=True)]
                expected = call(*one)
                torch.testing.assert_close([t[k] for t in actual], list(expected))
