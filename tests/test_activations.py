"""The activations' formulas, for every 16-bit number and a million float32 ones.

The law, against float64: the error is at most that of PyTorch's own function in the same dtype plus
one unit in the last place, of the value for f and of max(1, |f'|) for f'. For 16-bit numbers, which
are computed in float and rounded once as the kernels do, it holds number by number. In float32
PyTorch is exact by luck at some numbers, so there its error is the largest of the thousand nearest.
"""

from __future__ import annotations

import ctypes
import math
import subprocess

import mpmath
import pytest
import torch
import torch.nn.functional as F
from test_approximate import every_value, unit
from test_build import ROOT

from build_support import CXX_FLAGS, find_cxx, find_torch
from torchcalc import functional
from torchcalc.reference.activations import ACTIVATIONS, DEFAULTS, FROM_OUTPUT, derivative

pytestmark = pytest.mark.no_kernels

MODES = ["value", "first", "second", "first of output", "second of output", "first of bit"]
KINKS = [0.0, 1.0, 3.0, 6.0, 20.0]
FLOATING = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("activations") / "activations.so"
    include = ["-Icsrc", "-isystem", str(find_torch().path / "include")]
    command = [*find_cxx(), *CXX_FLAGS, "-fvisibility=default", *include, "-shared"]
    subprocess.run([*command, "tests/activations.cpp", "-o", str(path)], cwd=ROOT, check=True)
    library = ctypes.CDLL(str(path))
    library.output_tells.restype = library.has_two_slopes.restype = ctypes.c_bool
    return library


@pytest.fixture(scope="module")
def sweep(library):
    def call(activation, mode, u, parameters=None, c=1.0):
        a, b = (*(parameters or DEFAULTS.get(activation, ())), 0, 0)[:2]
        y = u.double() if u.dtype == torch.float64 else u.float()
        y = y.clone() if y is u else y
        library.sweep(
            ctypes.c_int64(list(ACTIVATIONS).index(activation)),
            ctypes.c_double(a),
            ctypes.c_double(b),
            ctypes.c_int64(MODES.index(mode)),
            ctypes.c_bool(y.dtype == torch.float64),
            ctypes.c_double(c),
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_int64(y.numel()),
        )
        return y.to(u.dtype)

    return call


def inputs(dtype):
    if dtype != torch.float32:
        z = every_value(dtype)
        return z[z.isfinite()]
    generator = torch.Generator().manual_seed(0)

    def uniform(n, low, high):
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    size = torch.exp2(uniform(400_000, -149, 127.9))
    size[::2] *= -1
    kinks = torch.tensor([*KINKS, *(-k for k in KINKS)], dtype=torch.float64)
    near = kinks + torch.exp2(uniform(200_000, -30, -2).reshape(-1, 10)) * uniform(10, -1, 1).sign()
    return torch.cat([uniform(400_000, -20, 20), size, near.flatten()]).float().unique()


WITHOUT_CANCELLATION = {  # the same, exact for z < 0 too
    "gelu": lambda z: z / 2 * torch.special.erfc(-z / 2**0.5),
    "gelu_tanh": lambda z: z * torch.sigmoid((8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)),
}


def value_and_derivative(function, z):
    z = z.clone().requires_grad_()
    y = function(z)
    return y.detach(), torch.autograd.grad(y.sum(), z)[0]


def worst_errors(sweep, activation, dtype):
    """Of f and f', each in units: (ours, PyTorch's, the largest share of what is allowed)."""
    z = inputs(dtype)
    function = ACTIVATIONS[activation]
    exact, exact_slope = value_and_derivative(function, z.double())
    if activation in WITHOUT_CANCELLATION:
        exact = WITHOUT_CANCELLATION[activation](z.double())
    own = F.hardsigmoid if activation == "hardsigmoid" else function  # the reference composes it
    eager, eager_slope = value_and_derivative(own, z)
    found = []
    for mode, want, other in (("value", exact, eager), ("first", exact_slope, eager_slope)):
        ours = sweep(activation, mode, z)
        scale = unit(want if mode == "value" else want.abs().clamp(min=1), dtype)
        errors = []
        for y in (ours, other):
            same = y == want.to(dtype)  # rounded as well as can be, infinite ones as well
            rounding = (y.double() - want).abs() / scale
            errors.append(torch.where(same & ~y.isfinite(), 0.0, rounding))
        allowed = errors[1].nan_to_num(torch.inf) + 1
        if dtype == torch.float32:
            allowed = F.max_pool1d(allowed[None], 1001, 1, 500)[0]
        share = (errors[0] / allowed).nan_to_num(torch.inf, torch.inf)
        at = share.argmax()
        found.append(
            (errors[0].max().item(), errors[1].max().item(), share[at].item(), z[at].item())
        )
    return found


@pytest.mark.parametrize("precision", FLOATING, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_of_every_value(sweep, activation, precision):
    found = worst_errors(sweep, activation, precision)
    for mode, (ours, eager, share, at) in zip(("f ", "f'"), found, strict=True):
        print(
            f"{activation:12} {precision!s:15} {mode}: {ours:.3g} units, PyTorch's {eager:.3g}; "
            f"{share:.2f} of what is allowed, at {at:.9g}"
        )
    assert max(share for *_, share, _ in found) <= 1


PARAMETERS = [(activation, DEFAULTS.get(activation, ())) for activation in ACTIVATIONS]
PARAMETERS += [("leaky_relu", (slope,)) for slope in (-0.5, 0.0, 2.0)]
PARAMETERS += [("elu", (alpha,)) for alpha in (-0.7, 0.0, 2.5)]
PARAMETERS += [("celu", (alpha,)) for alpha in (-1.5, 0.25, 4.0)]
PARAMETERS += [("softplus", p) for p in ((-2.0, 20.0), (3.0, 15.0), (1.0, 2.0))]
PARAMETERS += [("hardtanh", p) for p in ((-2.0, 2.0), (0.1, 0.7), (2.0, 2.0))]


def points():
    kinks = torch.tensor([-6.0, -3.0, -2.0, -1.0, 0.0, 0.1, 0.7, 1.0, 2.0, 3.0, 6.0])
    return torch.cat([kinks, torch.linspace(-25, 25, 2001)]).double()


@pytest.mark.parametrize("precision", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("activation", "parameters"), PARAMETERS, ids=str)
def test_parameters_and_orders(sweep, activation, parameters, precision):
    """f, f' and f'' of the input, against autograd in float64, at the kinks as well."""
    z = points().to(precision).double()
    parameters = tuple(torch.tensor(parameters, dtype=precision).double().tolist())
    tolerance = 1e-13 if precision == torch.float64 else 1e-6
    # k z is rounded, and e^(k z) multiplies that by k z.
    inner = 1 + z.abs() / abs(parameters[0]) if activation == "celu" else 1
    for order, mode in enumerate(MODES[:3]):
        exact = derivative(torch.ones_like(z), z, activation, order, *parameters, from_output=False)
        found = sweep(activation, mode, z.to(precision), parameters).double()
        scale = exact.abs().clamp(min=1) * inner * (1 if order < 2 else 10)
        assert ((found - exact).abs() <= tolerance * scale).all(), mode


@pytest.mark.parametrize("precision", [torch.float64, *FLOATING], ids=str)
@pytest.mark.parametrize(("activation", "parameters"), PARAMETERS, ids=str)
def test_what_tells_the_derivative(library, sweep, activation, parameters, precision):
    """F_1 of the rounded output errs by what rounding changes in it; a bit tells it exactly."""
    z = points().to(precision)
    of_input = sweep(activation, "first", z, parameters)
    a, b = (*parameters, 0, 0)[:2]
    code = list(ACTIVATIONS).index(activation)
    numbers = ctypes.c_int64(code), ctypes.c_double(a), ctypes.c_double(b)
    if library.has_two_slopes(*numbers):
        assert torch.equal(sweep(activation, "first of bit", z, parameters), of_input)
    if library.output_tells(*numbers, ctypes.c_bool(False)):
        assert activation in FROM_OUTPUT
        y = sweep(activation, "value", z, parameters)
        error = (sweep(activation, "first of output", y, parameters) - of_input).abs().double()
        steepest = sweep(activation, "second of output", y, parameters).abs().double()
        largest = of_input.abs().max().double()
        allowed = steepest * unit(y.double(), precision) + 2 * unit(largest, precision)
        if activation == "softplus":  # outputs at its threshold, where f' jumps by so much
            allowed = allowed + math.exp(-b)
        assert (error <= allowed).all()


@pytest.mark.parametrize(("activation", "parameters"), PARAMETERS, ids=str)
def test_far_and_not_finite(sweep, activation, parameters):
    """Where float64 PyTorch has no NaN there is none; NaN stays; far out derivatives are finite."""
    z = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    exact, slope = value_and_derivative(
        lambda v: ACTIVATIONS[activation](v, *parameters), z.double()
    )
    for mode, expected in (("value", exact), ("first", slope)):
        found = sweep(activation, mode, z, parameters).double()
        known = ~expected.isnan()
        known[2] = False  # of NaN PyTorch's own slope depends on the tensor's size
        torch.testing.assert_close(found[known], expected[known], rtol=1e-6, atol=1e-6)
    assert sweep(activation, "value", z, parameters)[2].isnan()
    far = torch.tensor([1e-45, 1e-30, 1e4, 1e19, 3e38])
    far = torch.cat([far, -far])
    if not (activation == "celu" and parameters[0] < 0):  # grows as e^z
        for mode in ("first", "second"):
            assert sweep(activation, mode, far, parameters).isfinite().all() or (
                activation == "relu_squared"
            )


@pytest.mark.parametrize("activation", ["relu", "relu_squared", "relu6", "hardtanh", "hardswish"])
def test_an_infinite_cotangent_where_the_unit_is_off(sweep, activation):
    z = torch.tensor([-7.0, -3.0])
    assert (sweep(activation, "first", z, c=torch.inf) == 0).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "module",
    [
        torch.nn.ELU(1.9),
        torch.nn.ELU(100.0),
        torch.nn.ELU(9e3),
        torch.nn.CELU(1e-6),
        torch.nn.CELU(50.0),
        torch.nn.Softplus(1e5),
        torch.nn.Softplus(500.0),
        torch.nn.LeakyReLU(1e-6),
        torch.nn.Hardtanh(-0.1, 0.3),
    ],
    ids=str,
)
def test_derivatives_of_odd_parameters(module, kind):
    """Where the output is rounded to something that does not tell it, the derivative is not told by
    the output."""
    scale = {torch.nn.CELU: module.alpha if hasattr(module, "alpha") else 1.0}.get(
        type(module), 1.0
    )
    scale = 1 / module.beta if isinstance(module, torch.nn.Softplus) else min(scale, 10.0)
    z = (scale * torch.linspace(-14, 14, 4001)).to(kind).requires_grad_()
    y = functional.linear_act(z[:, None], torch.ones(1, 1, dtype=kind), activation=module)
    (ours,) = torch.autograd.grad(y.sum(), z)
    exact_z = z.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(module(exact_z).sum(), exact_z)
    (eager,) = torch.autograd.grad(module(z).sum(), z)
    unit = torch.finfo(kind).eps * exact.abs().clamp(min=1)
    allowed = (eager.double() - exact).abs().max() + 2 * unit
    assert ((ours.double() - exact).abs() <= allowed).all()


def _exactly(activation, z):
    """In many digits. (PyTorch comes with mpmath.)"""
    if activation == "gelu":
        return z * mpmath.ncdf(z)
    if activation == "gelu_tanh":
        cubic = mpmath.mpf("0.044715")
        return z / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (z + cubic * z**3)))
    if activation == "silu":
        return z / (1 + mpmath.exp(-z))
    if activation == "sigmoid":
        return 1 / (1 + mpmath.exp(-z))
    if activation == "softplus":
        return mpmath.log1p(mpmath.exp(z))
    return mpmath.tanh(z) if activation == "tanh" else z if z > 0 else mpmath.expm1(z)


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_tanh", "silu", "sigmoid", "softplus", "tanh", "elu"]
)
def test_error_in_float64(sweep, activation):
    """Within eight units in the last place; PyTorch's gelu loses all digits of its lower tail."""
    z = torch.cat([torch.linspace(-8, 9, 307), torch.linspace(-1e-3, 1e-3, 31)]).double()
    actual = sweep(activation, "value", z)
    with mpmath.workdps(40):
        for at, found in zip(z.tolist(), actual.tolist(), strict=True):
            exact = _exactly(activation, mpmath.mpf(at))
            # e^w multiplies the three rounding errors of w = 1.6 (z + 0.0447 z^3) by w.
            units = 8 + (1.5 * 1.6 * abs(at + 0.0447 * at**3) if activation == "gelu_tanh" else 0)
            assert abs(found - exact) <= units * math.ulp(float(exact)), at
