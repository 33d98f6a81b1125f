"""Casts under torch.autocast: in a region a parameter is cast once, as by PyTorch's own ops."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import is_quiet

_C = torch._C


class _Region(threading.local):
    """The casts of parameters since the thread entered autocast."""

    def __init__(self) -> None:
        self.casts: dict[Any, tuple[Tensor, Any, Tensor]] = {}
        self.witness: Any = None

    def lasts(self, device: torch.device) -> bool:
        """Whether a region goes on. PyTorch tells nobody when it drops its own casts, at the end of
        one: so we give it something to cast and watch that.
        """
        if self.witness is None or self.witness() is None:
            with torch.inference_mode(False), torch.enable_grad():
                one = torch.ones(1, 1, device=device, requires_grad=True)
                parameter = torch.ones(1, 1, device=device, requires_grad=True)
                product = torch.mm(one, parameter)
            casts: dict[Any, Any] = {}
            self.casts = casts
            self.witness = weakref.ref(
                product.grad_fn._saved_mat2,  # type: ignore[union-attr]
                lambda _: casts.clear(),
            )
            del product
        return self.witness() is not None


_region = _Region()


def cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As torch.autocast: float64 stays."""
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    if t.dtype == dtype:
        return t
    if not _is_kept(t) or not _region.lasts(t.device):
        return t.to(dtype)
    key = id(t), dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    content = t._version, t.data_ptr()
    found = _region.casts.get(key)
    if found is not None and found[1] == content:
        return found[2]
    made = t.to(dtype)
    _region.casts[key] = t, content, made
    return made


def _is_kept(t: Tensor) -> bool:
    # As PyTorch: parameters. Not where somebody looks on, who would see the witness.
    return (
        torch.is_autocast_cache_enabled()
        and t.is_leaf
        and t.requires_grad
        and t.dtype == torch.float32
        and type(t) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_dynamo_compiling()
        and is_quiet()
        and _C._autograd._top_saved_tensors_default_hooks(False) is None
    )
