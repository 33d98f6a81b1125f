"""python -m torchcalc info"""

from __future__ import annotations

import platform

import torch

import torchcalc
from torchcalc import _C, ops
from torchcalc.ops._library import CUDA_LIBRARY


def run() -> int:
    """Prints a line per fact; needs nothing but torch."""
    build = _C.build_info()
    facts = {
        "torchcalc": torchcalc.__version__,
        "torch": f"{torch.__version__} (kernels need >= {build['torch_abi_target']})",
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "compiler": build["compiler"],
        "SIMD": _C.cpu_capability(),
        "CUDA kernels": _cuda_kernels(),
        "CUDA architectures": build["cuda_archs"] or "none",
        "devices": ", ".join(_devices()),
    }
    for name, value in facts.items():
        print(f"{name:<20}{value}")
    return 0


def _cuda_kernels() -> str:
    if not CUDA_LIBRARY.exists():
        return "not built (no torchcalc/_cuda.so)"
    if ops.is_native(torch.device("cuda")):
        return "torchcalc/_cuda.so, loaded"
    if torch.cuda.is_available():
        return "torchcalc/_cuda.so, not loaded (a warning says why)"
    return f"torchcalc/_cuda.so, not loaded (torch {torch.__version__} finds no CUDA here)"


def _devices() -> list[str]:
    cpu = f"cpu ({torch.get_num_threads()} threads)"
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return [cpu, *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in gpus)]
