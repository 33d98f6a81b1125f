"""Loads the native libraries: their ops are in torch.ops.torchcalc from then on."""

from pathlib import Path

import torch

try:
    from torchcalc import _C as _C  # importing it registers the schemas and the CPU kernels
except ImportError as error:
    raise ImportError(
        f"torchcalc's kernels do not load ({error}); build them for this Python and torch with "
        "`make build` or `pip install --no-build-isolation .`"
    ) from error

NATIVE = {"cpu", "meta"}  # device types with kernels; meta's are the fake ones

_cuda_library = Path(__file__).parent.parent / "_cuda.so"
if torch.version.cuda is not None and _cuda_library.exists():
    torch.ops.load_library(str(_cuda_library))  # type: ignore[no-untyped-call]
    NATIVE.add("cuda")
