"""Proximal operators as modules."""

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_number


class SoftThreshold(torch.nn.Module):
    r"""S(x, lam) = sign(x) max(|x| - lam, 0).

    See :func:`torchcalc.functional.soft_threshold`.

    Args:
        lam: a float >= 0; a tensor, which becomes a buffer; or an ``nn.Parameter``, learned.
    """

    lam: Tensor | float

    def __init__(self, lam: Tensor | float = 0.5) -> None:
        super().__init__()
        if isinstance(lam, torch.nn.Parameter):
            self.lam = lam
        elif isinstance(lam, Tensor):
            self.register_buffer("lam", lam)
        else:
            self.lam = check_number("SoftThreshold", "lam", lam)

    def forward(self, x: Tensor) -> Tensor:
        return functional.soft_threshold(x, self.lam)

    def extra_repr(self) -> str:
        return f"lam={tuple(self.lam.shape) if isinstance(self.lam, Tensor) else self.lam}"
