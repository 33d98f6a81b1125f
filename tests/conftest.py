"""Which rows, modes and devices there are to test."""

from __future__ import annotations

import os

import pytest
import torch

from torchcalc.testing import OPS

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.cuda))
# pytest-xdist: the workers share the cores.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
# On the CPU the CUDA code is slow: there derivatives are compared along random directions.
IS_CUDA_HOST = "TORCHCALC_CUDA_HOST" in os.environ
DERIVATIVES = ("gradgradcheck", "forward AD")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rows(mode: str | None = None) -> pytest.MarkDecorator:
    """Parametrizes a test by the rows of the op table; those that skip ``mode`` say why."""
    params = []
    for op in OPS:
        reason = op.skip.get(mode) if mode else None
        marks = [pytest.mark.skip(reason=f"not applicable: {reason}")] if reason else []
        if op.by_formula and mode in DERIVATIVES:
            marks.append(pytest.mark.no_kernels)
        params.append(pytest.param(op, id=op.name, marks=marks))
    return pytest.mark.parametrize("op", params)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(autouse=True)
def _fresh_state():
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "of pytest-timeout, which is not installed here")
    parser.addoption(
        "--large", action="store_true", help="also run what needs more than 10 GB of memory"
    )
