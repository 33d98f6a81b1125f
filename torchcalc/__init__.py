"""The calculus of training as fused, differentiable PyTorch kernels."""

from torchcalc import functional, nn, optim, prox
from torchcalc._version import __version__

__all__ = ["__version__", "functional", "nn", "optim", "prox"]
