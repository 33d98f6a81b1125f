"""What runs the CUDA code on the CPU (tests/cuda_host) notices: faults planted into the sources.

``make test`` runs the other tests that way.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import NamedTuple

import pytest
from cuda_host import build

pytestmark = pytest.mark.no_kernels

FORWARD = ("tests/test_forward.py", "-k", "test_forward and float32 and dropout")
GRADIENTS = ("tests/test_forward.py", "-k", "test_gradients and float32 and silu")
# The other dtypes are left out of the sources, to compile faster.
ONE_DTYPE = {
    "common/dispatch.h": (
        "case ScalarType::Double:\n      return f(std::type_identity<double>{});\n"
        "    case ScalarType::BFloat16:\n      return f(std::type_identity<BFloat16>{});\n"
        "    case ScalarType::Half:\n      return f(std::type_identity<Half>{});\n    ",
        "",
    )
}


class Fault(NamedTuple):
    sanitizer: str
    family: str
    path: str
    before: str
    after: str
    message: str  # of a misuse, of a sanitizer, or of a test


FAULTS = {
    "null stream": Fault(
        "none",
        "dropout",
        "cuda/dropout.cu",
        "current_stream()",
        "nullptr",
        "cuda_host: a launch on another stream than torch's",
    ),
    "missing guard": Fault(
        "none",
        "dropout",
        "ops/dropout.h",
        "const typename Device::Guard guard(x);",
        "",
        "cuda_host: the current device asked for outside of a guard",
    ),
    "guard of another device": Fault(
        "none",
        "dropout",
        "cuda/device.h",
        "DeviceGuard(t.get_device_index())",
        "DeviceGuard(t.get_device_index() + 1)",
        "cuda_host: a guard of another device than the tensor's",
    ),
    "skipped launch": Fault(
        "none",
        "dropout",
        "cuda/dropout_kernels.cuh",
        "launch(kernel, octet_blocks(args.n)",
        "launch(kernel, int64_t{0}",
        "AssertionError",
    ),
    "a block too few": Fault(
        "none",
        "dropout",
        "cuda/octet.cuh",
        "return ceil_div(total, int64_t{kThreads} * kOctet);",
        "return (total - 1) / (int64_t{kThreads} * kOctet);",
        "AssertionError",
    ),
    "too many threads": Fault(
        "none",
        "dropout",
        "cuda/launch.cuh",
        "kThreads = 256",
        "kThreads = 2048",
        "of 2048 threads failed: invalid configuration argument",
    ),
    "off by one": Fault(
        "memory",
        "dropout",
        "cuda/octet.cuh",
        "if (i < at.n) p[i]",
        "if (i <= at.n) p[i]",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "misaligned access": Fault(
        "memory",
        "prox",
        "cuda/octet.cuh",
        "aligned && n == kOctet",
        "n == kOctet",
        "runtime error: .* misaligned address",
    ),
    "wrong warp size": Fault(
        "none",
        "linear_act",
        "cuda/launch.cuh",
        "kWarpSize = 32",
        "kWarpSize = 64",
        "AssertionError",
    ),
    "missing barrier": Fault(
        "races",
        "linear_act",
        "cuda/reduce.cuh",
        "__syncthreads();",
        "",
        "ThreadSanitizer: data race",
    ),
    "barrier in a branch": Fault(
        "none",
        "linear_act",
        "cuda/reduce.cuh",
        "__syncthreads();",
        "if (thread % 2)\n__syncthreads();\nelse\n__syncthreads();",
        "cuda_host: threads of a block wait at different barriers",
    ),
    "return before a barrier": Fault(
        "none",
        "linear_act",
        "cuda/reduce.cuh",
        "__syncthreads();",
        "if (thread == 0) return v[0]; __syncthreads();",
        "cuda_host: threads wait for others that have ended",
    ),
}
TESTS = {
    "dropout": FORWARD,
    "linear_act": GRADIENTS,
    "prox": ("tests/test_transforms.py", "-k", "layout and soft_threshold and float32"),
}


def run(sanitizer, family, name, changes):
    library = build.library(sanitizer, name.replace(" ", "_"), (family,), ONE_DTYPE | changes)
    pytest_command = [sys.executable, "-m", "pytest", "-p", "cuda_host.plugin", "-x", "-q", "-s"]
    return subprocess.run(
        [*pytest_command, "-p", "no:cacheprovider", *TESTS[family]],
        cwd=build.ROOT,
        env=build.environment(sanitizer, library),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_noticed(name):
    fault = FAULTS[name]
    done = run(fault.sanitizer, fault.family, name, {fault.path: (fault.before, fault.after)})
    assert done.returncode != 0, done.stdout
    assert re.search(fault.message, done.stdout), done.stdout


@pytest.mark.parametrize("family", ["dropout", "linear_act"])
def test_without_a_fault_they_pass(family):
    done = run("none", family, f"right {family}", {})
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout
    assert re.search(r"[1-9]\d* launches", done.stdout), done.stdout
