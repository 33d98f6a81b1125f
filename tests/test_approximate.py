"""16-bit activations with the errors of a GPU's exp and division, for every 16-bit number.

The law: error <= 2 x the error of plain PyTorch in the same dtype + one unit in the last place,
number by number, against float64.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess

import pytest
import torch
from test_build import ROOT

from build_support import CXX_FLAGS, find_cxx, find_torch
from torchcalc.reference.activations import ACTIVATIONS, DEFAULTS, derivative

pytestmark = pytest.mark.no_kernels

HALF_TYPES = [torch.bfloat16, torch.float16]
SIGNS = [*itertools.product((-1, 1), (-1, 1))]  # of the errors of exp and of divisions
MODES = ["value", "first derivative", "second derivative", "first derivative of scaled"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    library = tmp_path_factory.mktemp("approximate") / "approximate.so"
    include = ["-Icsrc", "-isystem", str(find_torch().path / "include")]
    source = "tests/approximate.cpp"
    command = [*find_cxx(), *CXX_FLAGS, "-fvisibility=default", *include, "-shared"]
    subprocess.run([*command, source, "-o", str(library)], cwd=ROOT, check=True)
    function = ctypes.CDLL(str(library)).sweep

    def call(activation, mode, z, exact=False, signs=(0, 0), scale=1.0):
        y = torch.empty_like(z)
        function(
            ctypes.c_int64(list(ACTIVATIONS).index(activation)),
            *map(ctypes.c_double, (*DEFAULTS.get(activation, ()), 0, 0)[:2]),
            ctypes.c_bool(z.dtype == torch.float16),
            ctypes.c_int64(MODES.index(mode)),
            ctypes.c_bool(exact),
            *map(ctypes.c_double, signs),
            ctypes.c_float(scale),
            ctypes.c_void_p(z.data_ptr()),
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_int64(z.numel()),
        )
        return y

    return call


def every_value(dtype):
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def unit(x, dtype):
    """One unit in the last place of the dtype's numbers at x."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(min=info.tiny))[1] - 1
    return torch.ldexp(torch.full_like(x, info.eps), exponent)


WITHOUT_CANCELLATION = {  # the same, exact for z < 0 too
    "gelu": lambda z: z / 2 * torch.special.erfc(-z / 2**0.5),
    "gelu_tanh": lambda z: z * torch.sigmoid((8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)),
}


def reference(activation, mode, z):
    if mode == "value" and z.dtype == torch.float64 and activation in WITHOUT_CANCELLATION:
        return WITHOUT_CANCELLATION[activation](z)
    if mode == "value":
        return ACTIVATIONS[activation](z)
    order = MODES.index(mode)
    return derivative(torch.ones_like(z), z, activation, order, from_output=False)


FROM_INPUT = ["gelu", "gelu_tanh", "silu", "quick_gelu", "mish"]
FROM_OUTPUT = ["tanh", "sigmoid", "elu", "selu", "softplus", "softsign"]
CASES = [(activation, "value") for activation in FROM_INPUT + FROM_OUTPUT]
CASES += [(a, mode) for a in [*FROM_INPUT, "elu", "softplus", "softsign"] for mode in MODES[1:3]]
# What is this small becomes 0: quotients of more than 2^126, gelu's tail. The derivatives' oracle
# subtracts numbers near 1, and multiplies by up to 100.
SMALL = {"value": 2**-115, "first derivative": 2**-43, "second derivative": 2**-43}


def share_of_allowed(sweep, activation, mode, half, signs):
    """The largest error as a share of what the law allows."""
    z = every_value(half)
    z = z[z.isfinite()]
    exact = reference(activation, mode, z.double())
    if (activation, mode) == ("mish", "second derivative"):
        exact = exact.nan_to_num(0)  # PyTorch's own is NaN far out
    eager = reference(activation, mode, z).double()
    allowed = 2 * (eager - exact).abs().nan_to_num(0) + unit(exact, half) + SMALL[mode]
    found = sweep(activation, mode, z, signs=signs)
    error = torch.where(found == exact.to(half), 0.0, (found.double() - exact).abs())  # overflow
    return (error / allowed).nan_to_num(nan=torch.inf).max().item()


@pytest.mark.parametrize("half", HALF_TYPES, ids=str)
@pytest.mark.parametrize(("activation", "mode"), CASES, ids=str)
def test_error_of_every_value(sweep, activation, mode, half):
    shares = [share_of_allowed(sweep, activation, mode, half, signs) for signs in SIGNS]
    print(f"{activation}, {mode}, {half}: {max(shares):.2f} of what is allowed")
    assert max(shares) <= 1


def test_larger_errors_would_show(sweep):
    """Of a thousandth instead of a millionth."""
    assert share_of_allowed(sweep, "silu", "value", torch.float16, (2**13, -(2**13))) > 1


@pytest.mark.parametrize("half", HALF_TYPES, ids=str)
@pytest.mark.parametrize("activation", FROM_INPUT + FROM_OUTPUT)
def test_nan_infinities_and_saturated_units(sweep, activation, half):
    z = every_value(half)
    far = z.isfinite() & (z.abs() > 110)  # e^110 is no float
    for mode, signs in itertools.product(MODES[:3], SIGNS):
        y = sweep(activation, mode, z, signs=signs)
        exact = sweep(activation, mode, z, exact=True)
        assert torch.equal(y.isnan(), exact.isnan())
        assert torch.equal(y.isinf(), exact.isinf())
        if activation in FROM_INPUT and mode != "value":
            assert not y[far].isnan().any()
            torch.testing.assert_close(y[far], exact[far], rtol=0, atol=torch.finfo(half).eps)
            if mode == "second derivative":
                assert (y[far].double().abs() < 1e-34).all()


@pytest.mark.parametrize("half", HALF_TYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softsign"])
@pytest.mark.parametrize("p", [0.1, 0.305, 0.5, 0.999])
def test_derivative_of_scaled(sweep, activation, p, half):
    """u = y / scale: whatever the division's error, a saturated unit stays one.

    Others whose y is rounded as far may be taken for saturated, by either division.
    """
    scale = 65536 / (65536 - round(65536 * p))
    a = every_value(half)
    a = a[a.abs() <= 1]
    y = (a.float() * scale).to(half)
    mode = "first derivative of scaled"
    exact = sweep(activation, mode, y, exact=True, scale=scale)
    for sign in (-1, 1):
        found = sweep(activation, mode, y, signs=(0, sign), scale=scale)
        saturated = (a.abs() == 1) & (exact == 0)
        assert (found[saturated] == 0).all()
        error = (found.double() - exact.double()).abs()
        either = (found == 0) | (exact == 0)
        assert (error <= unit(exact.double(), half) + torch.finfo(half).eps * either).all()
