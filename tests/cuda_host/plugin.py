"""pytest -p cuda_host.plugin: from here on the CPU's ops are the CUDA code."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

import torchcalc  # noqa: F401 (registers the CPU kernels, which are replaced)

KERNEL = re.compile(r"void torchcalc::cuda::\w+_kernel<.*>\([^{}]*\)")
LIBRARY = os.environ["TORCHCALC_CUDA_HOST"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch: kernels are replaced
    torch.ops.load_library(LIBRARY)
_library = ctypes.CDLL(LIBRARY)
# Where pytest does not capture it: what ends the program is to be read.
_errors = os.dup(2)
_library.cuda_host_set_errors(_errors)
with contextlib.suppress(AttributeError):  # without a sanitizer
    ctypes.CDLL(None).__sanitizer_set_report_fd(ctypes.c_void_p(_errors))

launches: Counter[int] = Counter()  # of each kernel, by its offset in the library


def launched() -> Iterator[tuple[int, int]]:
    """The kernels that this process has launched, and how many times each."""
    offset, times = ctypes.c_ulong(), ctypes.c_ulong()
    k = 0
    while _library.cuda_host_launched(
        ctypes.c_size_t(k), ctypes.byref(offset), ctypes.byref(times)
    ):
        yield offset.value, times.value
        k += 1


def kernels() -> dict[int, str]:
    """All kernels of the library, by their offset."""
    nm = ["nm", "--defined-only", "--demangle", LIBRARY]
    symbols = subprocess.run(nm, check=True, capture_output=True, text=True).stdout
    lines = (line.split(maxsplit=2) for line in symbols.splitlines())
    return {int(at, 16): name for at, _, name in lines if KERNEL.fullmatch(name)}


def never_launched() -> list[str]:
    return sorted(name for offset, name in kernels().items() if not launches[offset])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-kernels", action="store_true", help="fail if a CUDA kernel was never launched"
    )


# In the many modes of derivation and transformation, one activation that is differentiated by its
# output and one by its input stand for the others, which have kernels of the same make.
MODES = ("test_derivatives", "test_transforms", "test_tracing", "test_mutation")
ALIKE = re.compile(r"linear_act\[(?!(relu|gelu)\])")
OF_EACH = ("test_gradcheck", "test_gradgradcheck", "test_forward_ad")


def is_left_out(item: pytest.Item) -> bool:
    if item.get_closest_marker("no_kernels") or item.get_closest_marker("slow"):
        return True
    module, _, name = item.nodeid.rpartition("/")[2].partition(".py::")
    return module in MODES and name.partition("[")[0] not in OF_EACH and bool(ALIKE.search(name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    hidden = list(filter(is_left_out, items))
    config.hook.pytest_deselected(items=hidden)
    items[:] = [item for item in items if not is_left_out(item)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["launches"] = list(launched())
        return
    launches.update(dict(launched()))
    if session.config.option.all_kernels and never_launched() and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    launches.update(dict(getattr(node, "workeroutput", {}).get("launches", ())))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    never, count = never_launched(), len(kernels())
    terminalreporter.section("CUDA code on the CPU")
    terminalreporter.write_line(
        f"{launches.total()} launches of {count - len(never)} of {count} kernels"
    )
    if terminalreporter.config.option.all_kernels:
        for name in never:
            terminalreporter.write_line(f"never launched: {name}", red=True)
