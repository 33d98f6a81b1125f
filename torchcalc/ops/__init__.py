"""Derivatives, vmap rules and fake kernels of torch.ops.torchcalc (private)."""

from pathlib import Path

import torch

try:
    from torchcalc import _C as _C  # importing it registers the schemas and the CPU kernels
except ImportError as error:
    raise ImportError(
        f"torchcalc's kernels do not load ({error}); build them for this Python and torch with "
        "`make build` or `pip install --no-build-isolation .`"
    ) from error

_cuda_library = Path(__file__).parent.parent / "_cuda.so"
_HAS_CUDA = torch.version.cuda is not None and _cuda_library.exists()
if _HAS_CUDA:
    torch.ops.load_library(str(_cuda_library))  # type: ignore[no-untyped-call]

from torchcalc.ops import _autograd, dropout, linear_act, optim, prox  # noqa: E402

if _HAS_CUDA:
    _autograd.NATIVE.add("cuda")

__all__ = ["dropout", "is_native", "linear_act", "optim", "prox"]


def is_native(device: torch.device) -> bool:
    """Whether there are kernels for it; elsewhere the ops run ``torchcalc.reference``."""
    return device.type in _autograd.NATIVE
