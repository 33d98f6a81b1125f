"""Fake kernels of the optimizer steps, which mutate their arguments and return nothing."""

from __future__ import annotations

import torch

from torchcalc.ops import _library as _library  # the ops are there


@torch.library.register_fake("torchcalc::sgd_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("torchcalc::adamw_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None
