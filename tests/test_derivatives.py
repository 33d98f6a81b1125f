"""Derivatives of every op, reverse, forward, mixed, nested: finite differences and PyTorch's."""

from __future__ import annotations

import pytest
import torch
from conftest import IS_CUDA_HOST, rows
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev


def samples(op, device):
    for sample in op.samples(torch.device(device), torch.float64):
        yield sample, tuple(t.clone().requires_grad_() for t in sample.inputs)


@rows("gradcheck")
def test_gradcheck(op, device):
    for sample, inputs in samples(op, device):
        assert gradcheck(sample.call, inputs), sample.name


@rows("gradgradcheck")
def test_gradgradcheck(op, device):
    for sample, inputs in samples(op, device):
        assert gradgradcheck(
            sample.call, inputs, check_fwd_over_rev=True, fast_mode=IS_CUDA_HOST
        ), sample.name


@rows("forward AD")
def test_forward_ad(op, device):
    for sample, inputs in samples(op, device):
        assert gradcheck(sample.call, inputs, check_forward_ad=True, check_backward_ad=False), (
            sample.name
        )


@rows("forward AD")
def test_forward_ad_without_grad(op, device):
    for sample in op.samples(torch.device(device), torch.float64):
        tangents = tuple(torch.randn_like(t) for t in sample.inputs)
        with torch.no_grad():
            _, actual = torch.func.jvp(sample.call, sample.inputs, tangents)
            _, expected = torch.func.jvp(sample.reference, sample.inputs, tangents)
        torch.testing.assert_close(actual, expected, msg=sample.name)


@rows("gradgradcheck")
@pytest.mark.parametrize(
    "order",
    [
        (jacrev,) * 3,
        (jacfwd,) * 3,
        (jacfwd, jacrev, jacfwd),
        (jacrev, jacfwd, jacrev),
        (jacrev,) * 4,
        (jacfwd,) * 4,
    ],
    ids=lambda order: "-".join(transform.__name__[3:] for transform in order),
)
def test_higher_derivatives(op, device, order):
    # Along a curve through the inputs: all of them depend on s, so mixed derivatives count too.
    for sample in op.samples(torch.device(device), torch.float64):
        directions = [torch.randn_like(t).abs() for t in sample.inputs]
        weights = torch.randn_like(sample.call(*sample.inputs))

        def derivative(function, sample=sample, directions=directions, weights=weights):
            def along(s):
                inputs = (t + s * d for t, d in zip(sample.inputs, directions, strict=True))
                return (weights * function(*inputs)).sum()

            for transform in order:
                along = transform(along)
            return along(torch.tensor(0.1, dtype=torch.float64, device=device))

        expected = derivative(sample.reference)
        torch.testing.assert_close(derivative(sample.call), expected, msg=sample.name)


@rows("gradgradcheck")
@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_every_mode_over_every_mode(op, outer, inner, device):
    # On the inputs themselves: at the outer level they do not say that they require grad.
    for sample in op.samples(torch.device(device), torch.float64):
        for argnum in range(len(sample.inputs)):
            actual = outer(inner(lambda *t, s=sample: s.call(*t).square().sum(), argnum), argnum)
            expected = outer(
                inner(lambda *t, s=sample: s.reference(*t).square().sum(), argnum), argnum
            )
            torch.testing.assert_close(
                actual(*sample.inputs), expected(*sample.inputs), msg=sample.name
            )


@rows("gradgradcheck")
def test_hessian(op, device):
    for sample in op.samples(torch.device(device), torch.float64):
        everything = tuple(range(len(sample.inputs)))
        actual = hessian(lambda *t, s=sample: s.call(*t).square().sum(), everything)
        expected = hessian(lambda *t, s=sample: s.reference(*t).square().sum(), everything)
        torch.testing.assert_close(actual(*sample.inputs), expected(*sample.inputs))


@rows("gradcheck")
def test_vjp_whose_transform_has_ended(op, device):
    # What func.vjp has saved is still wrapped when its function is called.
    for sample in op.samples(torch.device(device), torch.float64):
        results = []
        for call in (sample.call, sample.reference):
            y, pull_back = torch.func.vjp(call, *sample.inputs)
            results.append(pull_back(torch.ones_like(y)))
        torch.testing.assert_close(*results, msg=sample.name)
