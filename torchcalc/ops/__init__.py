"""Autograd Functions, fake kernels and vmap rules over torch.ops.torchcalc (private)."""

from pathlib import Path

import torch

try:
    from torchcalc import _C as _C  # importing it registers the schemas and the CPU kernels
except ImportError as error:
    raise ImportError(
        f"torchcalc's kernels do not load ({error}); build them for this Python and torch with "
        "`make build` or `pip install --no-build-isolation .`"
    ) from error

_NATIVE = {"cpu", "meta"}  # meta: the fake kernels

_cuda_library = Path(__file__).parent.parent / "_cuda.so"
if torch.version.cuda is not None and _cuda_library.exists():
    torch.ops.load_library(str(_cuda_library))  # type: ignore[no-untyped-call]
    _NATIVE.add("cuda")


def is_native(device: torch.device) -> bool:
    """Whether the kernels run there and now; else ``torchcalc.reference`` does.

    A torch.func transform inside of torch.compile is traced through a Function's forward, to an op
    that has no derivative: gradients would silently be 0.
    """
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    return device.type in _NATIVE
