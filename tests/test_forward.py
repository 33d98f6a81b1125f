"""Values and gradients of every op against the reference in float64.

The law: error <= 2 x the error of plain PyTorch in the same dtype + one unit in the last place.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import pytest
import torch
from conftest import rows

from torchcalc import functional

SMALL = 64  # elements
HALF = (torch.bfloat16, torch.float16)
# Whose derivative we tell from the rounded output, and PyTorch from the input: a unit more.
TOLD_BY_OUTPUT = ("elu", "celu", "selu", "softplus", "softsign")


@dataclass
class Errors:
    """Largest errors of many tensors, each in units in the last place of its largest element."""

    found: list[tuple[str, int, float, float]] = field(default_factory=list)

    def add(self, name, actual, eager, exact):
        assert actual.dtype == eager.dtype, name
        assert actual.shape == eager.shape, name
        if actual.dtype in (torch.bool, torch.uint8):
            assert torch.equal(actual, eager), name
        elif actual.numel() > 0:
            unit = max(torch.finfo(actual.dtype).eps * exact.abs().max().item(), 1e-300)
            ours = (actual.double() - exact).abs().max().item() / unit
            theirs = (eager.double() - exact).abs().max().item() / unit
            assert ours == ours, f"{name}: NaN"
            self.found.append((name, actual.numel(), ours, theirs))

    def check(self, dtype, more=0):
        if not self.found:
            return
        # How exact PyTorch is on a tensor of few elements is luck: what it is on such tensors of
        # the op at worst counts for them, and its median over the op's tensors for larger ones.
        typical = statistics.median(row[3] for row in self.found)
        small = max((row[3] for row in self.found if row[1] < SMALL), default=0.0)
        # In the dtypes whose reference is hardly more exact, sums in another order may differ.
        ulps = 1 + more if dtype in HALF else 8 * (1 + 2 * more)
        for name, numel, ours, theirs in self.found:
            bound = 2 * max(theirs, small if numel < SMALL else typical) + ulps
            assert ours <= bound, f"{name}: error of {ours:.2f} ulp > {bound:.2f} ulp"


@rows()
def test_forward(op, device, dtype):
    errors = Errors()
    for samples in (op.samples, op.shapes):
        for sample in samples(torch.device(device), dtype):
            actual = sample.call(*sample.inputs)
            eager = sample.reference(*sample.inputs)
            exact = sample.reference(*(t.double() for t in sample.inputs))
            assert actual.is_contiguous()
            errors.add(sample.name, actual, eager, exact)
    errors.check(dtype)


@rows("gradcheck")
def test_gradients(op, device, dtype):
    errors = Errors()
    for samples in (op.samples, op.shapes):
        for sample in samples(torch.device(device), dtype):
            inputs = [t.clone().requires_grad_() for t in sample.inputs]
            actual = sample.call(*inputs)
            cotangent = torch.randn_like(actual)
            grads = torch.autograd.grad(actual, inputs, cotangent)
            eager = torch.autograd.grad(sample.reference(*inputs), inputs, cotangent)
            exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
            exact_y = sample.reference(*exact_inputs)
            exact = torch.autograd.grad(exact_y, exact_inputs, cotangent.double())
            for grad, e, x in zip(grads, eager, exact, strict=True):
                errors.add(f"{sample.name}: gradient of shape {tuple(x.shape)}", grad, e, x)
    errors.check(dtype, more=any(f"[{name}]" in op.name for name in TOLD_BY_OUTPUT))


# Their limits at infinity are what ours give; PyTorch's formulas give NaN.
LIMITS = {"linear_act[mish]", "linear_act[hardswish]", "linear_act[softsign]"}


def assert_same(actual, expected, limits):
    if limits:
        expected = torch.where(expected.isnan(), actual, expected)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@rows("gradcheck")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_propagate_as_in_pytorch(op, device, value):
    for sample in op.samples(torch.device(device), torch.float32):
        if "dropout" in sample.name or "drop" in op.name:
            continue  # dropped elements are 0 by selection: test_dropout
        # In float64: PyTorch's float32 gelu makes NaN of infinity on some CPUs.
        inputs = [t.clone() for t in sample.inputs]
        inputs[0].view(-1)[1] = value
        exact_inputs = [t.double().requires_grad_() for t in inputs]
        inputs = [t.requires_grad_() for t in inputs]
        actual, exact = sample.call(*inputs), sample.reference(*exact_inputs)
        limits = op.name in LIMITS and value == value
        assert_same(actual, exact.float(), limits)
        grads = torch.autograd.grad(actual, inputs, torch.ones_like(actual))
        expected = torch.autograd.grad(exact, exact_inputs, torch.ones_like(exact))
        for grad, e in zip(grads, expected, strict=True):
            assert_same(grad, e.float(), limits)


@pytest.mark.parametrize(
    ("activation", "infinity", "limit", "slope"),
    [
        ("mish", torch.inf, torch.inf, 1),
        ("hardswish", -torch.inf, 0, 0),
        ("softsign", torch.inf, 1, 0),
        ("softsign", -torch.inf, -1, 0),
    ],
)
def test_limits_at_infinity(activation, infinity, limit, slope, device):
    z = torch.tensor([[infinity]], device=device, requires_grad=True)
    y = functional.linear_act(z, torch.ones(1, 1, device=device), activation=activation)
    assert y.item() == limit
    assert torch.autograd.grad(y, z)[0].item() == slope


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 3.0, 10.0])
def test_tanh_is_within_a_unit_in_the_last_place(scale):
    z = scale * torch.linspace(-1, 1, 100_001).view(-1, 1)
    exact = z.double().tanh()
    unit = 2.0 ** (torch.frexp(exact)[1].double() - 24)
    actual = functional.linear_act(z, torch.ones(1, 1), activation="tanh")
    assert ((actual.double() - exact).abs() / unit).max() < 1.2  # 0.95 where there is FMA


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_derivatives_far_from_zero(activation, order, dtype, device):
    largest = min(torch.finfo(dtype).max, 1e38)
    z = torch.tensor([50.0, 1e3, 1e4, 1e10, 1e20, largest]).clamp(max=largest).to(device, dtype)
    z = torch.cat([z, -z]).requires_grad_()
    weight = torch.ones(1, 1, device=device, dtype=dtype)
    derivative = functional.linear_act(z.view(-1, 1), weight, activation=activation).view(-1)
    for _ in range(order):
        (derivative,) = torch.autograd.grad(derivative.sum(), z, create_graph=True)
    expected = torch.zeros_like(z) if order == 2 else (z > 0).to(dtype)
    torch.testing.assert_close(derivative, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.305, 0.5, 0.9])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_saturated_units_get_no_gradient(activation, p, dtype, device):
    # With dropout y = scale * a is what is kept, and rounded: a is told from it.
    z = torch.full((512, 1), 50.0, device=device, dtype=dtype, requires_grad=True)
    weight = torch.ones(1, 1, device=device, dtype=dtype)
    functional.linear_act(z, weight, activation=activation, dropout_p=p).sum().backward()
    assert (z.grad == 0).all()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_gradients_near_saturation_keep_the_law(activation, p, device, dtype):
    z = torch.linspace(0, 8, 4001, device=device, dtype=dtype).view(-1, 1)
    weight = torch.ones(1, 1, device=device, dtype=dtype)
    f = getattr(torch, activation)
    exact_z = z.double().requires_grad_()
    (exact,) = torch.autograd.grad(f(exact_z).sum(), exact_z)
    eager_z = z.clone().requires_grad_()
    (eager,) = torch.autograd.grad(f(eager_z).sum(), eager_z)
    ours_z = z.clone().requires_grad_()
    y = functional.linear_act(ours_z, weight, activation=activation, dropout_p=p, seed=1)
    (ours,) = torch.autograd.grad(y.sum(), ours_z)
    scale = 65536 / (65536 - round(65536 * p))
    kept = ours != 0
    error = (ours.double() / scale - exact)[kept].abs().max()
    # u = y / scale was rounded twice, and 1 - u^2 doubles that; "exact" is no more so in float64.
    ulps = 4 if dtype == torch.float64 else 2
    bound = 2 * (eager.double() - exact).abs().max() + ulps * torch.finfo(dtype).eps
    assert error <= bound
    assert (ours >= 0).all()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_gelu_where_the_tail_is_subnormal(order, device):
    # From |z| = 12.6 on, e^(-z^2 / 2) counts as 0: arithmetic on subnormal numbers is slow.
    z = torch.linspace(-16, 16, 6401, device=device).view(-1, 1)
    weight = torch.ones(1, 1, device=device)
    exact_z = z.double().requires_grad_()
    ours_z = z.clone().requires_grad_()
    exact = torch.nn.functional.gelu(exact_z)
    ours = functional.linear_act(ours_z, weight)
    for _ in range(order):
        (exact,) = torch.autograd.grad(exact.sum(), exact_z, create_graph=True)
        (ours,) = torch.autograd.grad(ours.sum(), ours_z, create_graph=True)
    torch.testing.assert_close(ours.double(), exact, atol=2e-7, rtol=1e-6)
