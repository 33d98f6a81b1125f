"""Seeded dropout of every kind as modules: torch.nn's names, arguments and texts."""

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import dropout_threshold


class _Dropout(torch.nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        dropout_threshold(type(self).__name__, "p", p)
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _DropoutNd(_Dropout):
    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(p)
        self.inplace = inplace

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_DropoutNd):
    r"""y_i = x_i / (1 - p) where element i is kept, else 0; the identity in eval mode.

    See :func:`torchcalc.functional.dropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, self.training, self.inplace)


class Dropout1d(_DropoutNd):
    """Drops whole channels of x [N, C, L] or [C, L]: :func:`torchcalc.functional.dropout1d`."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout1d(x, self.p, self.training, self.inplace)


class Dropout2d(_DropoutNd):
    """Drops whole channels of x [N, C, H, W]: :func:`torchcalc.functional.dropout2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout2d(x, self.p, self.training, self.inplace)


class Dropout3d(_DropoutNd):
    """Drops whole channels of x [N, C, D, H, W] or [C, D, H, W].

    See :func:`torchcalc.functional.dropout3d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout3d(x, self.p, self.training, self.inplace)


class AlphaDropout(_DropoutNd):
    """Dropout that keeps a mean of 0 and a variance of 1.

    See :func:`torchcalc.functional.alpha_dropout`. Like torch.nn's, it takes ``inplace`` and leaves
    x as it is: the backward of selu, which it follows, needs that.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.alpha_dropout(x, self.p, self.training)


class FeatureAlphaDropout(_DropoutNd):
    """:class:`AlphaDropout` of whole channels of x [N, C, *].

    See :func:`torchcalc.functional.feature_alpha_dropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.feature_alpha_dropout(x, self.p, self.training)


class DropPath(_Dropout):
    """Stochastic depth, drops whole samples of x [N, *]: :func:`torchcalc.functional.drop_path`.

    Example:
        >>> path = torchcalc.nn.DropPath(0.1)
        >>> x, branch = torch.randn(8, 64), torch.nn.Linear(64, 64)
        >>> y = x + path(branch(x))
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p)

    def forward(self, x: Tensor) -> Tensor:
        return functional.drop_path(x, self.p, self.training)


class DropoutAdd(_Dropout):
    """y = residual + dropout(x) in one pass: :func:`torchcalc.functional.dropout_add`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return functional.dropout_add(x, residual, self.p, self.training)
