"""Loads the native libraries: their ops are in torch.ops.torchcalc from then on."""

import re
import sys
import warnings
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
CUDA_LIBRARY = Path(__file__).parent.parent / "_cuda.so"


def load_cuda(library: Path = CUDA_LIBRARY) -> None:
    """Loads the CUDA kernels if they run on every GPU here; else warns, and the reference serves.

    Called when torch initializes CUDA: sooner the GPUs are not known, later there may be tensors.
    """
    build = _C.build_info()
    archs, cuda, of_torch = build["cuda_archs"], build["cuda"], str(torch.version.cuda)
    if cuda.split(".")[0] != of_torch.split(".")[0]:
        # It might even load, with a second CUDA runtime beside torch's.
        _go_without(library, f"it was built with CUDA {cuda}, and torch with {of_torch}")
        return
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not serves(archs, capability):
            _go_without(
                library,
                f"it was built for {archs}, and cuda:{index} "
                f"({torch.cuda.get_device_name(index)}) is {'.'.join(map(str, capability))} "
                "(CUDA_VISIBLE_DEVICES can hide a GPU)",
            )
            return
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        _go_without(library, str(error.__cause__ or error))  # torch's own names no reason
        return
    if not torch._C._dispatch_has_kernel_for_dispatch_key("torchcalc::linear_act", "CUDA"):
        _go_without(library, "it holds no kernels")
        return
    NATIVE.add("cuda")


def _go_without(library: Path, reason: str) -> None:
    message = (
        f"torchcalc's CUDA kernels in {library} are not used: {reason}. "
        "On CUDA the ops run in plain PyTorch, which is slower; rebuild torchcalc for this "
        "machine's GPUs, CUDA and torch."
    )
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # raised from here it would keep torch from initializing CUDA, for good
        print(message, file=sys.stderr)


def serves(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``archs``, such as "8.0+PTX;9.0a", runs on a GPU of this capability.

    Machine code runs where the major number is the same and the minor one no smaller; that for 9.0a
    only there; what +PTX adds, on all later ones.
    """
    for major, minor, kind, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", archs):
        arch = int(major), int(minor)
        if kind == "a":
            if capability == arch:
                return True
        elif capability >= arch and (capability[0] == arch[0] or (ptx and not kind)):
            return True
    return False


if torch.version.cuda is not None and CUDA_LIBRARY.exists():
    torch.cuda._lazy_call(load_cuda)  # type: ignore[no-untyped-call]
